"""Faster layers for a twin: convolutions channels last; norms, gates and GELUs as one kernel each."""

import functools
from typing import Any

import torch
from comfy.ldm.modules.attention import GEGLU, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import nn

from .channels_last import stay_in_order
from .device import HALF, kernel_obstacle
from .tensors import is_packed


def fuse_layers(twin: Any) -> str:
    """Makes a twin's convolutions work channels last, and its norms, gates and GELUs as one kernel each.

    Args:
        twin: from `trainable_twin`, on a GPU, in half precision; changed in place.

    Returns:
        Why fused kernels cannot be used; empty if they are.
    """
    net: Any = twin.diffusion_model
    for parameter in net.parameters():
        is_here = parameter.device == twin.device  # weights that wait in RAM stay as they are
        if parameter.dim() == 4 and is_here and not is_packed(parameter):
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
    with_silu = _take_silus(net, {id(norm) for norm in norms})
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
    """Whether a layer has its class's forward and no weight functions."""
    return "forward" not in vars(layer) and not has_functions(layer)


def is_usual(layer: Any) -> bool:
    """Whether a layer's forward is torch's or the host's, not a subclass's of some model, and its weights are plain."""
    module = type(layer).forward.__module__
    if any(map(is_packed, layer.parameters(recurse=False))):
        return False
    return module == "comfy.ops" or module.startswith("torch.")


def has_functions(layer: Any) -> bool:
    """Whether a layer has weight functions: the host calls them on the weight or bias each time it is used."""
    return any(getattr(layer, f"{kind}_function", None) for kind in ("weight", "bias"))


def move_biases(block: Any) -> None:
    """Moves the biases of a residual block's convolutions to the layers whose outputs are added to theirs.

    A convolution adds its bias in a pass of its own, a linear layer within its matrix product.

    Args:
        block: a ResBlock of a twin; changed in place.
    """
    if block.emb_layers is not None and not block.use_scale_shift_norm:
        _move_bias(block.in_layers[-1], block.emb_layers[-1])
    _move_bias(block.out_layers[-1], block.skip_connection)


def _move_bias(source: Any, target: Any) -> None:
    bias, other = (getattr(layer, "bias", None) for layer in (source, target))
    if bias is None or other is None or not (is_unchanged(source) and is_unchanged(target)):
        return
    if bias.is_floating_point() and (bias.shape, bias.dtype) == (other.shape, other.dtype):
        both = (bias.float() + other.float()).to(bias.dtype)
        source.bias, target.bias = None, nn.Parameter(both, requires_grad=False)


class _FusedNorm:
    """A group norm's forward, optionally with the SiLU after it.

    It refers to the module's parameters, not to the module: a reference cycle would keep the twin alive.
    """

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
    """The eps of torch's RMS norm with eps=None: float32's machine epsilon, in earlier versions of torch `dtype`'s."""
    small = torch.full((1, 8), 2.0**-10, dtype=dtype, device=device)
    uses_dtypes_eps = nn.functional.rms_norm(small, (8,)).float().max() < 0.5
    return torch.finfo(dtype if uses_dtypes_eps else torch.float32).eps


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
    """A GEGLU layer's forward: value * gelu(gate)."""

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


def _take_silus(net: nn.Module, norms: set[int]) -> set[int]:
    """Replaces each SiLU that directly follows one of the norms (ids) by an identity; returns those norms' ids."""
    # With use_scale_shift_norm the block itself computes between its second norm and the SiLU.
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
