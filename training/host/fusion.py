"""Faster forms of a twin's layers: channels last, fused norms, gates and rotations, the quickest attention."""

import contextlib
import functools
import subprocess
from collections.abc import Iterator
from typing import Any

import comfy.ldm.flux.math
import torch
from comfy.ldm.modules.attention import GEGLU, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

HALF = (torch.bfloat16, torch.float16)
QUICKEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def fuse_layers(twin: Any) -> str:
    """Lets a twin's convolutions work channels last, and its norms and gates as one kernel each.

    Args:
        twin: from `trainable_view`, on a GPU, in half precision; changed for good.

    Returns:
        Why there are no fused kernels; empty where there are, or where the model has no layer for them.
    """
    net: Any = twin.diffusion_model
    for parameter in net.parameters():
        if parameter.dim() == 4 and parameter.device == twin.device:  # what waits in RAM stays as it is
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    norms: list[Any] = [m for m in net.modules() if isinstance(m, nn.GroupNorm) and m.weight is not None]
    root_norms: list[Any] = [m for m in net.modules() if isinstance(m, nn.RMSNorm) and m.weight is not None]
    gates: list[Any] = [m for m in net.modules() if isinstance(m, GEGLU)]
    gelus: list[Any] = [m for m in net.modules() if isinstance(m, nn.GELU) and m.approximate == "tanh"]
    if not (norms or root_norms or gates or gelus):
        return ""
    if obstacle := _obstacle(twin.device):
        return obstacle
    with_silu = _take_silu(net)
    for norm in norms:
        norm.forward = _FusedNorm(norm, id(norm) in with_silu)
    for norm in root_norms:
        if norm.weight.dim() == 1:
            norm.forward = _FusedRMSNorm(norm)
    for gate in gates:
        gate.forward = _FusedGEGLU(gate)
    for gelu in gelus:
        gelu.forward = _gelu
    return ""


@contextlib.contextmanager
def fused_rotation() -> Iterator[None]:
    """While it lasts, the rotary embedding that Flux shares with many models is one kernel, there and back.

    It is a function of the host's, which no module holds; so it is replaced in its place, and put back.
    """
    place = comfy.ldm.flux.math
    before = getattr(place, "_apply_rope1", None)
    if before is None or not torch.cuda.is_available() or _obstacle(torch.device("cuda")):
        yield
        return
    place._apply_rope1 = functools.partial(_rotated, before)
    try:
        yield
    finally:
        place._apply_rope1 = before


def _rotated(slow: Any, x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """x with its pairs turned, as the host's own function does it."""
    is_usual = x.is_cuda and x.dtype in HALF and turns.dtype == torch.float32 and not turns.requires_grad
    if not is_usual or (x.dim(), turns.dim()) != (4, 6) or turns.shape[3] * 2 != x.shape[-1]:
        return slow(x, turns)
    from ..kernels import rotate

    if 1 not in (x.shape[2], turns.shape[2]):
        turns = turns[:, :, : x.shape[2]]
    if any(own not in (1, length) for own, length in zip(turns.shape[:3], x.shape[:3], strict=True)):
        return slow(x, turns)
    return rotate(x, turns)


def attention(_: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
    """The host's attention by a kernel with a backward pass; takes what `optimized_attention_override` is called with.

    cuDNN's goes first: on an H100 it took 0.6 of flash attention's time, there and back (measured). Where results must
    be the same bits each time, the host's own choice stays.
    """
    mask = args[0] if args else kwargs.get("mask")
    is_plain = mask is None and not kwargs.get("enable_gqa") and kwargs.get("scale") is None
    if not (q.dtype in HALF and is_plain) or torch.are_deterministic_algorithms_enabled():
        return attention_pytorch(q, k, v, heads, *args, **kwargs)
    if not kwargs.get("skip_reshape"):  # some models have split the heads of one of the three already
        q, k, v = (each.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    with sdpa_kernel(QUICKEST_FIRST, set_priority=True):
        output = nn.functional.scaled_dot_product_attention(q, k, v)
    return output if kwargs.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)


class _FusedNorm:
    """A group norm's forward, with the SiLU behind it. It holds the parameters, not the module, which holds it."""

    def __init__(self, norm: nn.GroupNorm, silu: bool):
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu
        self.parameters = norm._parameters

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.parameters["weight"], self.parameters["bias"]
        assert weight is not None and bias is not None
        if x.dim() == 4 and x.is_cuda and x.dtype in HALF:
            from ..kernels import group_norm

            x = x.contiguous(memory_format=torch.channels_last)
            return group_norm(x, self.groups, weight, bias, self.eps, self.silu)
        output = nn.functional.group_norm(x, self.groups, weight.to(x), bias.to(x), self.eps)
        return nn.functional.silu(output) if self.silu else output


class _FusedRMSNorm:
    """An RMS norm's forward."""

    def __init__(self, norm: nn.RMSNorm):
        self.eps = norm.eps
        self.parameters = norm._parameters

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.parameters["weight"]
        assert weight is not None
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        if x.is_cuda and x.dtype in HALF and x.dim() <= 4 and x.stride(-1) == 1:
            from ..kernels import rms_norm

            return rms_norm(x, weight, eps)
        return nn.functional.rms_norm(x, weight.shape, weight.to(x), eps)


class _FusedGEGLU:
    """A gated layer's forward."""

    def __init__(self, gated: GEGLU):
        self.proj = gated.proj

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj(x)
        if x.is_cuda and x.dtype in HALF:
            from ..kernels import geglu

            return geglu(x.contiguous())
        value, gate = x.chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    if x.is_cuda and x.dtype in HALF:
        from ..kernels import gelu

        return gelu(x)
    return nn.functional.gelu(x, approximate="tanh")


def _take_silu(net: nn.Module) -> set[int]:
    """Takes every SiLU right behind a group norm out of its sequence. Gives the ids of those norms."""
    # Such a block puts the time between its second norm and the SiLU.
    apart = {id(m.out_layers) for m in net.modules() if isinstance(m, ResBlock) and m.use_scale_shift_norm}
    norms = set()
    for sequence in net.modules():
        if isinstance(sequence, nn.Sequential) and id(sequence) not in apart:
            names = list(sequence._modules)
            for name, following in zip(names, names[1:], strict=False):
                norm, silu = sequence._modules[name], sequence._modules[following]
                if isinstance(norm, nn.GroupNorm) and norm.weight is not None and type(silu) is nn.SiLU:
                    norms.add(id(norm))
                    sequence._modules[following] = nn.Identity()
    return norms


def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device."""
    return not _obstacle(device)


@functools.cache
def _obstacle(device: torch.device) -> str:
    """Why Triton's kernels cannot run here; empty where one did."""
    try:
        from ..kernels import geglu

        geglu(torch.zeros(1, 2, device=device))
    except (ImportError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return str(error).strip().split("\n")[0] or type(error).__name__
    return ""
