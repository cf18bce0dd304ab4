"""Weights in fewer bits than the arithmetic: the host's own quantised checkpoints, and fp8 made here.

A quantised linear layer of a twin computes with the weight made dense on the fly, in the forward pass and again in
the backward pass; in between only the quantised weight is kept. The host's own way of training through such a layer
rounds the layer's input to the weight's format as well, or keeps the dense weight for the backward pass.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_class
from comfy_kitchen.tensor import BaseLayoutParams
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

AS_LOADED = "as loaded"
FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
ROWS = "KilnFP8RowsLayout"
SMALLEST_EXPONENT = -120
"""of a row's scale, so that a row of nothing but noise does not divide by zero"""


class FP8RowsLayout(QuantizedLayout):
    """e4m3 (Micikevicius et al., arXiv:2209.05433) with one scale for each output row, a power of two.

    Scaling by a power of two rounds nothing, and e4m3's three bits of mantissa fit bf16's seven: the dense weight is
    the same in bf16 and in float32. Against a weight w of a row with scale s the error is at most
    max(|w| / 16, s / 1024).
    """

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """scale: (out, 1) float32."""

    @classmethod
    def quantize(cls, tensor: Tensor, **kwargs: Any) -> tuple[Tensor, Params]:
        """(out, in) floats -> e4m3 and the rows' scales."""
        exact = tensor.float()
        mantissa, exponent = torch.frexp(exact.abs().amax(1, keepdim=True) / LARGEST)
        exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(min=SMALLEST_EXPONENT)
        scale = ((exponent.to(torch.int32) + 127) << 23).view(torch.float32)  # 2^exponent, exact on every device
        quantised = (exact / scale).clamp(-LARGEST, LARGEST).to(FP8)
        return quantised, cls.Params(scale=scale, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        return qdata.to(params.orig_dtype).mul_(params.scale.to(params.orig_dtype))

    @classmethod
    def get_plain_tensors(cls, qtensor: Any) -> tuple[Tensor, Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        return {"": qdata, "_scale": params.scale}


register_layout_class(ROWS, FP8RowsLayout)


def to_fp8(weight: Tensor, dtype: torch.dtype) -> Any:
    """A weight (out, in) in 8 bit, as the host's QuantizedTensor; made dense again it is of `dtype`."""
    return QuantizedTensor.from_float(weight, ROWS).to(dtype)


def is_linear(module: nn.Module) -> bool:
    """Any of the host's linear layers; its layers for quantised checkpoints are no nn.Linear."""
    return isinstance(module, comfy.ops.CastWeightBiasOp) and hasattr(module, "in_features")


def is_quantised(weight: Any) -> bool:
    """In fewer bits than any arithmetic here: the host's quantised tensors, and plain fp8 as storage.

    Other nodes' kinds of tensors (GGUF) are none: their own layers know how to read them.
    """
    is_plain = type(weight) in (Tensor, nn.Parameter)
    return isinstance(weight, QuantizedTensor) or (is_plain and weight.dtype in (FP8, torch.float8_e5m2))


def dense(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as plain numbers."""
    return (weight.dequantize() if isinstance(weight, QuantizedTensor) else weight).to(dtype)


def compute_quantised(twin: nn.Module) -> list[str]:
    """Lets every linear layer with a quantised weight compute as this file says.

    Args:
        twin: from `twin_of`; its layers are changed for good.

    Returns:
        The names of the layers. Not among them are layers that wrap their weight in functions of other nodes: they
        compute as the host does.
    """
    names = []
    for name, layer in twin.named_modules():
        if is_linear(layer) and is_quantised(layer.weight) and "forward" not in vars(layer):
            functions = (getattr(layer, f"{kind}_function", []) for kind in ("weight", "bias"))
            if not any(functions):
                layer.forward = _Quantised(layer)
                names.append(name)
    return names


class _Quantised:
    """Stands in for a linear layer's forward. It holds the layer weakly: a twin is to go when the run ends."""

    def __init__(self, layer: nn.Module):
        self.layer = weakref.ref(layer)

    def __call__(self, x: Tensor) -> Tensor:
        layer: Any = self.layer()
        comfy.ops.run_every_op()
        smoothing = getattr(layer, "pre_quant_scale", None)
        if smoothing is not None:
            x = x * smoothing.to(x.device, x.dtype)
        bias = None if layer.bias is None else layer.bias.to(x.device, x.dtype)
        return _Linear.apply(x, layer.weight, bias)  # pyright: ignore[reportReturnType]


class _Linear(torch.autograd.Function):
    """y = x W^T + b with a frozen W that is dense only while it is used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, dense(weight, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (weight,) = ctx.saved_tensors
        return gradient @ dense(weight, gradient.dtype), None, None
