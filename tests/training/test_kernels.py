"""The Triton kernels against torch, in Triton's interpreter where there is no GPU, and compiled for GPUs of others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lora_kiln.training.host.attention import FEW_KEYS_CAPABILITY, MOST_KEYS

from host import PACK, has_cuda

LOADED = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
kernels = sys.modules["kernels"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
"""

COMPARED = '''
from torch.nn import functional as F
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
    for shape, groups in (((2, 20, 3, 5), 2), ((1, 80, 8, 8), 8), ((2, 72, 7, 9), 24), ((1, 130, 1, 1), 2)):
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

for shape in ((2, 3, 5, 16), (3, 24), (1, 2, 7, 120), (5000,)):
    weight, x = draw(shape[-1], shift=1.0), draw(*shape)
    compare(lambda x: kernels.rms_norm(x, weight, 1e-6), lambda x: F.rms_norm(x, weight.shape, weight, 1e-6), x, shape)
    bias = draw(shape[-1])
    for w, b in ((weight, bias), (weight, None), (None, None)):
        def ours(x):
            return kernels.layer_norm(x, w, b, 1e-5)
        compare(ours, lambda x: F.layer_norm(x, x.shape[-1:], w, b, 1e-5), x + 3.0, shape)
    if len(shape) > 2:  # as heads lie beside each other
        def apart(norm):
            return lambda x: norm(x.transpose(1, 2))
        ours = apart(lambda x: kernels.rms_norm(x, weight, 1e-6))
        compare(ours, apart(lambda x: F.rms_norm(x, weight.shape, weight, 1e-6)), x, shape)

def turned(x, turns):
    pairs = x.unflatten(-1, (-1, 2))
    return (turns * pairs[..., None, :]).sum(-1).flatten(-2)

for shape, places in (((2, 3, 5, 16), (1, 1, 5)), ((2, 5, 3, 24), (2, 5, 1)), ((1, 2, 7, 120), (1, 1, 7))):
    turns = draw(*places, shape[-1] // 2, 2, 2)
    compare(lambda x: kernels.rotate(x, turns), lambda x: turned(x, turns), draw(*shape), shape)
    turns = draw(shape[0], shape[2], shape[1], shape[-1] // 2, 2, 2).transpose(1, 2)
    compare(lambda x: kernels.rotate(x, turns), lambda x: turned(x, turns), draw(*shape), shape)

for part in (slice(None), slice(3, 9), slice(0, 1400)):
    x = draw(2, 3, 1500)
    compare(lambda x: kernels.gelu(x[..., part]), lambda x: F.gelu(x[..., part], approximate="tanh"), x, part)

for batch, heads, queries, keys, width in ((2, 3, 130, 77, 40), (1, 2, 64, 5, 16), (1, 2, 200, 128, 64)):
    q, k, v = (draw(batch, length, heads, width).transpose(1, 2) for length in (queries, keys, keys))
    kernels.try_cross_attention(q.device, q.dtype, keys, width)
    for own in range(3):
        def among(attend):
            return lambda x: attend(*(x if place == own else each for place, each in enumerate((q, k, v))))
        ours, theirs = among(kernels.cross_attention), among(F.scaled_dot_product_attention)
        compare(ours, theirs, (q, k, v)[own], (queries, keys, width, own))
joined = draw(1, 9, 3, 2, 16).permute(2, 0, 3, 1, 4)  # one beside the other, as layers computed together give them
compare(
    lambda x: kernels.cross_attention(*x), lambda x: F.scaled_dot_product_attention(*x), joined.contiguous(), "joined"
)
assert torch.equal(kernels.cross_attention(*joined), kernels.cross_attention(*joined.contiguous()))
x = draw(1, 2, 70, 16).requires_grad_()
kernels.cross_attention(x, x.detach()[:, :, :9], x.detach()[:, :, 9:18]).sum().backward()
alone = x.grad.clone()
F.scaled_dot_product_attention(x, x.detach()[:, :, :9], x.detach()[:, :, 9:18]).sum().backward()
torch.testing.assert_close(alone, x.grad - alone, rtol=1e-5, atol=1e-5)

def far(rough, exact):
    return ((rough.float() - exact) / exact.norm()).norm().item()

half = torch.bfloat16 if device == "cuda" else torch.float16  # which numpy, and so the interpreter, knows
for width in (40, 64):
    inputs = [draw(1, length, 2, width).transpose(1, 2) for length in (150, 77, 77)]
    gradient, found = draw(1, 2, 150, width), []
    for attend, dtype in (
        (F.scaled_dot_product_attention, torch.float32), (F.scaled_dot_product_attention, half),
        (kernels.cross_attention, half),
    ):
        own = [each.to(dtype).detach().requires_grad_() for each in inputs]
        output = attend(*own)
        found.append([output, *torch.autograd.grad(output, own, gradient.to(dtype))])
    for exact, usual, ours in zip(*found):
        assert ours.dtype == half and far(ours, exact) < 1.5 * far(usual, exact) + 1e-3, (width, far(ours, exact))
x, weight, bias = draw(3, 50, shift=1.0), draw(50, shift=1.0), draw(50)
rough = kernels.layer_norm(x.to(half), weight.to(half), bias.to(half), 1e-5)
exact = F.layer_norm(x, (50,), weight, bias, 1e-5)
assert rough.dtype == half and far(rough, exact) < 0.01

codes = torch.arange(256, dtype=torch.uint8)
numbers = codes[(codes & 127) != 127].repeat(7)[:1750].view(torch.float8_e4m3fn).view(5, 350).to(device)
scale = torch.exp2(torch.arange(5.0) * 20 - 60)[:, None].to(device)
for dtype in (torch.float32, torch.bfloat16):
    assert torch.equal(kernels.from_e4m3(numbers, None, dtype), numbers.to(dtype))
    assert torch.equal(kernels.from_e4m3(numbers, scale, dtype), numbers.to(dtype) * scale.to(dtype))
assert torch.equal(kernels.transposed(numbers).view(torch.uint8), numbers.view(torch.uint8).T)

nans = torch.full((2, 4), 0x7F, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)
assert kernels.from_e4m3(nans, None, torch.float32).isnan().all()
for bad in (float("nan"), float("inf")):
    x = torch.ones(2, 5000, device=device)
    x[0, 4500] = bad
    made, by = kernels.rows_to_e4m3(x)
    assert not (made.float() * by)[0].isfinite().any() and (made.float() * by)[1].isfinite().all()

for width in (16, 5000):
    for factors in (None, torch.exp2(draw(width).round())):
        x = draw(6, width) * torch.logspace(-20, 20, 6, device=device)[:, None]
        x[2] = 0
        made, by = kernels.rows_to_e4m3(x, factors)
        exact = x if factors is None else x * factors
        largest = exact.abs().amax(1, keepdim=True)
        torch.testing.assert_close(by[largest > 0], (largest / 448)[largest > 0])
        nearest = (exact / by).clamp(-448, 448).to(torch.float8_e4m3fn)
        assert torch.equal(made.view(torch.uint8), nearest.view(torch.uint8))
print("same")
'''

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
capability, room, dtype = int(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4])
pairs = [tuple(map(int, each.split("x"))) for each in sys.argv[5:]]

class NoGPU:
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0
    def get_current_target(self):
        return GPUTarget("cuda", capability, 32)

def compile_only(kernel, grid, *arguments, **options):
    made = kernel.warmup(*arguments, grid=grid, **options)
    assert made.metadata.shared <= room, (kernel.__name__, made.metadata.shared)
    done.add(kernel.__name__)

def both(function, *shape, order=torch.contiguous_format):
    x = torch.empty(shape, dtype=dtype).contiguous(memory_format=order).requires_grad_()
    y = function(x)
    y.backward(torch.empty_like(y))

done = set()
driver.set_active(NoGPU())
for name, module in list(sys.modules.items()):
    if name.startswith("kernels.") and name != "kernels.launch":
        module.launch = compile_only
for keys, width in pairs:
    kernels.try_cross_attention(torch.device("cpu"), dtype, keys, width)
vector = torch.empty(640, dtype=dtype)
norm = lambda x: kernels.group_norm(x, 32, vector, vector, 1e-5, True)
both(norm, 1, 640, 8, 8, order=torch.channels_last)
both(lambda x: kernels.layer_norm(x, vector, vector, 1e-5), 1, 8, 640)
both(lambda x: kernels.rms_norm(x, vector, 1e-5), 1, 8, 640)
both(kernels.geglu, 1, 8, 2560)
both(kernels.gelu, 1, 8, 2560)
both(lambda x: kernels.rotate(x, torch.empty(1, 1, 8, 64, 2, 2)), 1, 4, 8, 128)
numbers, scale = kernels.rows_to_e4m3(torch.empty(8, 3072, dtype=dtype))
kernels.from_e4m3(numbers, scale, dtype)
kernels.transposed(numbers)
print("compiled", *sorted(done))
"""


def printed(program: str, *arguments: str, **environ: str) -> str:
    command = [sys.executable, "-c", LOADED + program, str(PACK / "training" / "kernels" / "__init__.py"), *arguments]
    result = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_they_give_what_torch_gives() -> None:
    environ = {} if has_cuda() else {"TRITON_INTERPRET": "1"}
    assert "same" in printed(COMPARED, "cuda" if has_cuda() else "cpu", **environ)


@pytest.mark.parametrize(("capability", "kib"), [((7, 5), 64), ((8, 6), 99), ((12, 0), 99)])
def test_they_compile_for_small_gpus_and_fit(capability: tuple[int, int], kib: int, tmp_path: Path) -> None:
    """Those with least shared memory (kib, of a program: CUDA's programming guide) of each line of GPUs, in the
    arithmetic that they have."""
    shapes = [f"{MOST_KEYS}x{width}" for width in (40, 64, MOST_KEYS)] if capability >= FEW_KEYS_CAPABILITY else []
    dtype = "float16" if capability < (8, 0) else "bfloat16"
    arguments = (f"{10 * capability[0] + capability[1]}", f"{kib * 2**10}", dtype, *shapes)
    done = printed(COMPILED, *arguments, TRITON_CACHE_DIR=str(tmp_path))
    assert "_rows_to_e4m3" in done and ("_backward" in done.split()) == bool(shapes)
