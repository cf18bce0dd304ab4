"""Faster forms of a twin's layers: channels last, fused norms, gates and rotations, the quickest attention."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import comfy.ldm.flux.math
import torch
from comfy.ldm.modules.attention import GEGLU, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn

from .device import HALF, has_kernels, kernel_obstacle


def fuse_layers(twin: Any) -> str:
    """Lets a twin's convolutions work channels last, and its norms, gates and GELUs as one kernel each.

    Args:
        twin: from `trainable_view`, on a GPU, in half precision; changed for good.

    Returns:
        Why there are no fused kernels; empty where there are.
    """
    net: Any = twin.diffusion_model
    for parameter in net.parameters():
        if parameter.dim() == 4 and parameter.device == twin.device:  # what waits in RAM stays as it is
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, SpatialTransformer) and len(module.transformer_blocks):
            last: Any = module.proj_out if module.use_linear else module.transformer_blocks[-1]
            last.register_forward_hook(stay_in_order)
        elif type(module) is ResBlock:
            move_biases(module)
    if obstacle := kernel_obstacle(twin.device):
        return obstacle
    layers: list[Any] = [module for module in net.modules() if is_unchanged(module)]
    usual: list[Any] = [module for module in layers if is_usual(module)]
    norms: list[Any] = [m for m in usual if isinstance(m, nn.GroupNorm) and m.weight is not None]
    root_norms: list[Any] = [m for m in usual if isinstance(m, nn.RMSNorm) and getattr(m.weight, "ndim", 0) == 1]
    layer_norms: list[Any] = [m for m in usual if isinstance(m, nn.LayerNorm) and len(m.normalized_shape) == 1]
    gates: list[Any] = [m for m in layers if type(m) is GEGLU]
    gelus: list[Any] = [m for m in usual if isinstance(m, nn.GELU) and m.approximate == "tanh"]
    with_silu = _take_silu(net, {id(norm) for norm in norms})
    for norm in norms:
        norm.forward = _FusedNorm(norm, id(norm) in with_silu)
    for norm in root_norms:
        norm.forward = _FusedRMSNorm(norm)
    for norm in layer_norms:
        norm.forward = _FusedLayerNorm(norm)
    for gate in gates:
        gate.forward = _FusedGEGLU(gate)
    for gelu in gelus:
        gelu.forward = _gelu
    return ""


def is_unchanged(layer: Any) -> bool:
    """Whether nobody has put a forward of its own on a layer, nor functions that change weights as they are fetched."""
    return "forward" not in vars(layer) and not has_functions(layer)


def is_usual(layer: Any) -> bool:
    """Whether a layer computes as torch's own of its kind does, and not as a class that was made of that."""
    home = type(layer).forward.__module__
    return home == "comfy.ops" or home.startswith("torch.")


def has_functions(layer: Any) -> bool:
    """The host hangs functions on layers that change weights as they are fetched."""
    return any(getattr(layer, f"{kind}_function", None) for kind in ("weight", "bias"))


@contextlib.contextmanager
def fused_rotation() -> Iterator[None]:
    """While it lasts, the rotary embedding that Flux shares with many models is one kernel, there and back.

    It is a function of the host's, which no module holds; so it is replaced in its place, and put back.
    """
    place = comfy.ldm.flux.math
    before = getattr(place, "_apply_rope1", None)
    if before is None:
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
    if not (is_usual and fits_rotation(x.shape, turns.shape) and has_kernels(x.device)):
        return slow(x, turns)
    from ..kernels import rotate

    return rotate(x, turns if 1 in (x.shape[2], turns.shape[2]) else turns[:, :, : x.shape[2]])


def fits_rotation(x: Sequence[int], turns: Sequence[int]) -> bool:
    """Whether `rotate` takes what has these shapes: turns of each place, or the same for all along a dimension."""
    if (len(x), len(turns)) != (4, 6) or turns[3] * 2 != x[3]:
        return False
    places = turns[2] if turns[2] > x[2] > 1 else x[2]  # the host leaves out what is beyond
    return turns[0] in (1, x[0]) and turns[1] in (1, x[1]) and turns[2] in (1, places)


def move_biases(block: Any) -> None:
    """Gives the biases of a residual block's convolutions to the layers whose outputs are added to theirs.

    A convolution adds its bias in a pass of its own, a linear layer within its product.

    Args:
        block: of a twin; changed for good.
    """
    if block.emb_layers is not None and not block.use_scale_shift_norm:
        _move_bias(block.in_layers[-1], block.emb_layers[-1])
    _move_bias(block.out_layers[-1], block.skip_connection)


def _move_bias(source: Any, target: Any) -> None:
    own, other = (getattr(layer, "bias", None) for layer in (source, target))
    if own is None or other is None or not (is_unchanged(source) and is_unchanged(target)):
        return
    if own.is_floating_point() and (own.shape, own.dtype) == (other.shape, other.dtype):
        both = (own.float() + other.float()).to(own.dtype)
        source.bias, target.bias = None, nn.Parameter(both, requires_grad=False)


def stay_in_order(_: nn.Module, __: Any, tokens: torch.Tensor) -> torch.Tensor:
    """A forward hook where tokens become a picture: they stay as they lie, which is channels last already.

    The host asks for the other order there, which costs a copy, one back before the next convolution, and both again
    in the backward pass.
    """
    return tokens.as_subclass(_Tokens)


class _Tokens(torch.Tensor):
    """Tokens (B, H * W, C) until somebody makes a picture (B, C, H, W) of them and asks for its order."""

    CHANGE_OF_SHAPE = (torch.Tensor.reshape, torch.Tensor.view, torch.Tensor.movedim, torch.Tensor.permute)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.contiguous and len(args) == 1 and not kwargs and args[0].dim() == 4:
                return args[0].contiguous(memory_format=torch.channels_last).as_subclass(torch.Tensor)
            result = func(*args, **(kwargs or {}))
            if not isinstance(result, torch.Tensor):
                return result
            return result.as_subclass(cls if func in cls.CHANGE_OF_SHAPE else torch.Tensor)


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


@functools.cache
def default_eps(dtype: torch.dtype, device: torch.device) -> float:
    """What torch's RMS norm adds where it is told nothing: float32's rounding, in earlier versions that of dtype."""
    small = torch.full((1, 8), 2.0**-10, dtype=dtype, device=device)
    is_own = nn.functional.rms_norm(small, (8,)).float().max() < 0.5
    return torch.finfo(dtype if is_own else torch.float32).eps


class _FusedRMSNorm:
    """An RMS norm's forward."""

    def __init__(self, norm: nn.RMSNorm):
        weight = norm.weight
        self.eps = default_eps(weight.dtype, weight.device) if norm.eps is None else norm.eps
        self.parameters = norm._parameters

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.parameters["weight"]
        assert weight is not None
        if x.is_cuda and x.dtype in HALF and x.dim() <= 4 and x.stride(-1) == 1:
            from ..kernels import rms_norm

            return rms_norm(x, weight, self.eps)
        return nn.functional.rms_norm(x, weight.shape, weight.to(x), self.eps)


class _FusedLayerNorm:
    """A layer norm's forward."""

    def __init__(self, norm: nn.LayerNorm):
        self.shape, self.eps = norm.normalized_shape, norm.eps
        self.parameters = norm._parameters

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.parameters["weight"], self.parameters["bias"]
        if x.is_cuda and x.dtype in HALF and x.dim() <= 4 and x.stride(-1) == 1 and x.shape[-1:] == self.shape:
            from ..kernels import layer_norm

            return layer_norm(x, weight, bias, self.eps)
        weight, bias = (None if each is None else each.to(x) for each in (weight, bias))
        return nn.functional.layer_norm(x, self.shape, weight, bias, self.eps)


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


def _take_silu(net: nn.Module, norms: set[int]) -> set[int]:
    """Takes every SiLU right behind one of the norms out of its sequence. Gives the ids of those that had one."""
    # Such a block puts the time between its second norm and the SiLU.
    apart = {id(m.out_layers) for m in net.modules() if isinstance(m, ResBlock) and m.use_scale_shift_norm}
    found = set()
    for sequence in net.modules():
        if isinstance(sequence, nn.Sequential) and id(sequence) not in apart:
            names = list(sequence._modules)
            for name, following in zip(names, names[1:], strict=False):
                norm, silu = sequence._modules[name], sequence._modules[following]
                if id(norm) in norms and type(silu) is nn.SiLU:
                    found.add(id(norm))
                    sequence._modules[following] = nn.Identity()
    return found
