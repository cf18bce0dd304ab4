"""The Triton kernels against torch, in Triton's interpreter where there is no GPU."""

import os
import subprocess
import sys

from host import PACK, has_cuda

PROGRAM = '''
import importlib.util, sys, torch
from torch.nn import functional as F
spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
device = sys.argv[2]
generator = torch.Generator().manual_seed(0)

def draw(*shape, shift=0.0):
    return (torch.randn(*shape, generator=generator) + shift).to(device)

def compare(ours, theirs, inputs, what):
    """Both in float32, so that only the order of sums differs."""
    gradient = None
    results = []
    for function in (ours, theirs):
        x = inputs.clone().requires_grad_()
        y = function(x)
        gradient = draw(*y.shape) if gradient is None else gradient
        y.backward(gradient)
        results.append((y.detach(), x.grad))
    for one, other in zip(*results):
        error = ((one - other).norm() / other.norm()).item()
        assert error < 1e-5, (what, error)

for silu in (True, False):
    for shape, groups in (((2, 20, 3, 5), 2), ((1, 320, 8, 8), 32), ((3, 96, 7, 9), 32), ((1, 130, 1, 1), 2)):
        weight, bias = draw(shape[1], shift=1.0), draw(shape[1])
        x = draw(*shape, shift=0.5).contiguous(memory_format=torch.channels_last)

        def theirs(x):
            y = F.group_norm(x, groups, weight, bias, 1e-5)
            return F.silu(y) if silu else y

        def ours(x):
            y = kernels.group_norm(x, groups, weight, bias, 1e-5, silu)
            assert y.is_contiguous(memory_format=torch.channels_last)
            return y

        compare(ours, theirs, x, (silu, shape, groups))

for shape in ((2, 3, 10), (5, 1400), (1, 2)):
    compare(kernels.geglu, lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]), draw(*shape), shape)
print("same")
'''


def test_they_give_what_torch_gives() -> None:
    environ = os.environ if has_cuda() else os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", PROGRAM, str(PACK / "training" / "kernels.py"), "cuda" if has_cuda() else "cpu"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert result.returncode == 0 and "same" in result.stdout, result.stderr[-3000:]
