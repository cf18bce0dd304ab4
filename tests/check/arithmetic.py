"""What ComfyUI's device computes: number formats, kinds of attention, and the pack's kernels, against exact results."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Sequence
from typing import Any

from check.ground import Ground
from check.outcome import FailedError, NotThereError, in_words

ROUGHEST = {"float64": 1e-12, "float32": 1e-4, "bfloat16": 0.03, "float16": 0.01}
"""largest error of products and gradients, as a share, by number format"""
NO_KERNEL = "torch has none for this device"
NO_KERNEL_WORDS = ("No available kernel", "No viable backend")
"""what torch says of a kind of attention that it does not have"""
CAPTION_SHAPES = ((256, 77, 40), (4096, 77, 64))
SHAPES = ((256, 256, 64), *CAPTION_SHAPES)
"""queries, keys and features of a head: of a picture to itself, and to a caption"""


def products(name: str) -> Callable[[Ground], str]:
    """A matrix product and its gradient in a number format."""

    def run(ground: Ground) -> str:
        import torch

        dtype, (a, b) = getattr(torch, name), drawn((64, 96), (96, 32))
        exact = forward_and_backward(torch.matmul, (a.double(), b.double()))
        made = unless_refused(
            lambda: forward_and_backward(torch.matmul, (a.to(ground.device, dtype), b.to(ground.device, dtype)))
        )
        return near(made, exact, ROUGHEST[name])

    return run


def float8(ground: Ground) -> str:
    """All numbers of fp8 (e4m3), as weights are kept in, made and read on the device."""
    import torch
    from lora_kiln.training import host

    codes = torch.arange(256, dtype=torch.uint8)
    exact = codes[(codes & 127) != 127].view(torch.float8_e4m3fn).float()
    made = unless_refused(lambda: exact.to(ground.device).to(torch.float8_e4m3fn).float().cpu())
    if not torch.equal(made, exact):
        raise FailedError(f"{int((made != exact).sum())} of {len(exact)} numbers are read otherwise")
    obstacle = host.fp8_matmul_obstacle(ground.device, torch.bfloat16)
    return f"{len(exact)} numbers kept; fp8 matmul: {obstacle or 'yes'}"


def trained_in(ground: Ground) -> str:
    """What precision auto comes to, and whether fp16 may be chosen."""
    from lora_kiln.training import host

    fp16 = "may be chosen" if host.has_fp16(ground.device) else "is not used by ComfyUI here"
    return f"{_half(ground) if host.has_bf16(ground.device) else 'float32'}; fp16 {fp16}"


# ---------------------------------------------------------------- attention


def torch_attention(backend: str) -> Callable[[Ground], str]:
    """One of torch's kernels for attention, forward and backward."""

    def run(ground: Ground) -> str:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        if not hasattr(SDPBackend, backend):
            raise NotThereError("not in this torch")

        def attend(*qkv: Any) -> Any:
            with sdpa_kernel([getattr(SDPBackend, backend)]):
                return torch.nn.functional.scaled_dot_product_attention(*qkv)

        return _attention(ground, lambda qkv: unless_refused(lambda: forward_and_backward(attend, qkv)))

    return run


def own_attention(ground: Ground) -> str:
    """The attention that training uses here, whichever kernel that is."""
    from lora_kiln.training import host
    from lora_kiln.training.host.attention import attention

    def attend(q: Any, k: Any, v: Any) -> Any:
        return attention(None, q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True)

    with host.training_mode():
        return _attention(ground, lambda qkv: forward_and_backward(attend, qkv))


def _attention(ground: Ground, made_of: Callable[[Any], Any], shapes: Sequence[tuple[int, int, int]] = SHAPES) -> str:
    import torch

    name, made, exact = _half(ground), [], []
    for queries, keys, width in shapes:
        qkv = drawn(*((1, 2, length, width) for length in (queries, keys, keys)))
        rounded = tuple(each.to(getattr(torch, name)) for each in qkv)
        usual = torch.nn.functional.scaled_dot_product_attention
        exact += forward_and_backward(usual, tuple(each.double() for each in rounded))
        made += made_of(tuple(each.to(ground.device) for each in rounded))
    return f"{name}, {near(made, exact, ROUGHEST[name])}"


# ---------------------------------------------------------------- kernels


def triton(ground: Ground) -> str:
    for package in ("triton", "triton-windows", "pytorch-triton-rocm", "pytorch-triton-xpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise NotThereError("not installed: steps are slower without the pack's kernels")


def own_kernels(ground: Ground) -> str:
    """The pack's kernels, each compiled here and compared with what torch gives."""
    from lora_kiln.training.host.device import kernel_obstacle

    if obstacle := kernel_obstacle(ground.device):
        raise NotThereError("no GPU" if ground.device.type == "cpu" else f"torch's are used: {obstacle}")
    told = [compare(ground) for compare in (_norms_and_gates, _few_keys)]
    return "; ".join(told)


def _norms_and_gates(ground: Ground) -> str:
    import torch
    from lora_kiln.training import kernels
    from torch.nn import functional as F

    weight, bias = (each.to(ground.device) for each in drawn((64,), (64,)))
    last = torch.channels_last
    compared: dict[str, tuple[Any, Any, Any]] = {
        "group_norm": (
            lambda x: kernels.group_norm(x, 32, weight, bias, 1e-5, True),
            lambda x: F.silu(F.group_norm(x, 32, weight, bias, 1e-5)),
            drawn((2, 64, 6, 10))[0].contiguous(memory_format=last),
        ),
        "layer_norm": (
            lambda x: kernels.layer_norm(x, weight, bias, 1e-5),
            lambda x: F.layer_norm(x, (64,), weight, bias, 1e-5),
            drawn((2, 9, 64))[0],
        ),
        "rms_norm": (
            lambda x: kernels.rms_norm(x, weight, 1e-6), lambda x: _rms_norm(x, weight, 1e-6), drawn((2, 9, 64))[0],
        ),
        "geglu": (kernels.geglu, lambda x: x.chunk(2, -1)[0] * F.gelu(x.chunk(2, -1)[1]), drawn((2, 9, 64))[0]),
        "gelu": (kernels.gelu, lambda x: F.gelu(x, approximate="tanh"), drawn((2, 9, 64))[0]),
    }  # fmt: skip
    told = {
        name: near(
            *(forward_and_backward(each, (x.to(ground.device),)) for each in (ours, theirs)), ROUGHEST["float32"]
        )
        for name, (ours, theirs, x) in compared.items()
    }
    return f"{', '.join(told)}: {max(told.values())}"


def _few_keys(ground: Ground) -> str:
    import torch
    from lora_kiln.training import kernels
    from lora_kiln.training.host.attention import runs_few_keys

    dtype = getattr(torch, _half(ground))
    if not all(runs_few_keys(ground.device, dtype, keys, width) for _, keys, width in CAPTION_SHAPES):
        return "attention to captions is torch's on this GPU"
    made_of = functools.partial(forward_and_backward, kernels.cross_attention)
    return f"attention to captions: {_attention(ground, made_of, CAPTION_SHAPES)}"


# ---------------------------------------------------------------- comparing


def drawn(*shapes: tuple[int, ...]) -> tuple[Any, ...]:
    """The same random tensors each time, on the CPU."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def forward_and_backward(function: Callable[..., Any], inputs: tuple[Any, ...]) -> list[Any]:
    """What a function gives, and the gradients of its inputs, on the CPU in float64."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        inputs = tuple(each.clone().requires_grad_() for each in inputs)
        output = function(*inputs)
        (along,) = drawn(tuple(output.shape))
        output.backward(along.to(output.device, output.dtype))
    return [each.detach().cpu().double() for each in (output, *(each.grad for each in inputs))]


def near(made: list[Any], exact: list[Any], roughest: float) -> str:
    """The largest error of some tensors, as a share, in words.

    Raises:
        FailedError: it is larger than `roughest`, or not finite.
    """
    errors = [((one - other).norm() / other.norm()).item() for one, other in zip(made, exact, strict=True)]
    if wrong := [error for error in errors if not error <= roughest]:  # not a number, too
        raise FailedError(f"error {wrong[0]:.1e}, where {roughest:.0e} is the most: what it computes is wrong")
    return f"error {max(errors):.0e}" if any(errors) else "error 0"


def unless_refused(compute: Callable[[], Any]) -> Any:
    """What `compute` gives; the device may refuse with an error of any kind, since nothing depends on it."""
    try:
        return compute()
    except Exception as error:
        words = in_words(error)
        raise NotThereError(
            NO_KERNEL if any(each in words for each in NO_KERNEL_WORDS) else f"refused: {words}"
        ) from error


def _rms_norm(x: Any, weight: Any, eps: float) -> Any:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _half(ground: Ground) -> str:
    """The number format in which attention is tried: the one of two bytes that the device is good at."""
    from lora_kiln.training import host

    if ground.device.type == "cpu":
        return "float32"
    return "bfloat16" if host.has_bf16(ground.device) else "float16"
