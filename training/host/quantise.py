"""Weights in fewer bits than the arithmetic: the host's own quantised checkpoints, and fp8 made here."""

from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_class
from comfy_kitchen.tensor import BaseLayoutParams
from torch import Tensor, nn

from .device import has_kernels

AS_LOADED, FP8_MATMUL = "as loaded", "fp8 matmul"
"""of config.BASE_PRECISIONS"""
FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
ROWS, MULTIPLIED_ROWS = "KilnFP8RowsLayout", "KilnFP8MultipliedRowsLayout"
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
        return _from_e4m3(qdata, params.scale, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: Any) -> tuple[Tensor, Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        return {"": qdata, "_scale": params.scale}


class FP8MultipliedRowsLayout(FP8RowsLayout):
    """The same, of weights that are multiplied as they are; see `products`."""


register_layout_class(ROWS, FP8RowsLayout)
register_layout_class(MULTIPLIED_ROWS, FP8MultipliedRowsLayout)


def to_fp8(weight: Tensor, dtype: torch.dtype, is_multiplied: bool = False) -> Any:
    """A weight (out, in) in 8 bit, as the host's QuantizedTensor; made dense again it is of `dtype`.

    Args:
        is_multiplied: whether it is multiplied in 8 bit too.
    """
    return QuantizedTensor.from_float(weight, MULTIPLIED_ROWS if is_multiplied else ROWS).to(dtype)


def is_multiplied(weight: Any) -> bool:
    """Whether a weight is multiplied in 8 bit."""
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == MULTIPLIED_ROWS


def in_fp8(base_precision: str) -> bool:
    """Whether a choice of config.BASE_PRECISIONS holds weights in 8 bit."""
    return base_precision != AS_LOADED


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
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize().to(dtype)
    return _from_e4m3(weight, None, dtype) if weight.dtype == FP8 and weight.dim() == 2 else weight.to(dtype)


def _from_e4m3(numbers: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    if numbers.is_cuda and dtype.itemsize <= 4 and has_kernels(numbers.device):
        from ..kernels import from_e4m3

        return from_e4m3(numbers.contiguous(), scale, dtype)
    if scale is None:
        return numbers.to(dtype)
    exact = torch.float32 if dtype == torch.float16 else dtype  # fp16 does not hold the smallest scales
    return numbers.to(exact).mul_(scale.to(exact)).to(dtype)
