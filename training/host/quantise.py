"""Weights with fewer bits than the arithmetic: the host's quantised checkpoints, and our fp8 with a scale per row."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_class
from comfy_kitchen.tensor import BaseLayoutParams
from torch import Tensor, nn

from ..adapters.base import is_linear
from .blocks import repeated_blocks
from .device import has_kernels
from .packed import format_name
from .tensors import is_packed

AS_LOADED, FP8_MATMUL = "as loaded", "fp8 matmul"
"""Two of config.BASE_PRECISIONS."""
FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
OURS = "fp8 by rows"
ROWS, MULTIPLIED_ROWS = "KilnFP8RowsLayout", "KilnFP8MultipliedRowsLayout"
SMALLEST_EXPONENT = -120
"""Of a row's scale, so that a row of zeros does not divide by zero."""


class FP8RowsLayout(QuantizedLayout):
    """e4m3 (Micikevicius et al., arXiv:2209.05433) with one power of two as scale for each output row.

    Scaling by a power of two is exact, and e4m3's 3 mantissa bits fit into bf16's 7: the dequantised weight is the same
    in bf16 and in float32. The error of a weight w in a row of scale s is at most max(|w| / 16, s / 1024).
    """

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """scale: (out, 1) float32."""

    @classmethod
    def quantize(cls, tensor: Tensor, **kwargs: Any) -> tuple[Tensor, Params]:
        """(out, in) floats -> (out, in) e4m3 and the scales of its rows."""
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
    """The same for weights that are multiplied in 8 bits, without dequantisation; see `products`."""


register_layout_class(ROWS, FP8RowsLayout)
register_layout_class(MULTIPLIED_ROWS, FP8MultipliedRowsLayout)


def to_fp8(weight: Tensor, dtype: torch.dtype, is_multiplied: bool = False) -> Any:
    """A weight (out, in) in 8 bits, as the host's QuantizedTensor.

    Args:
        dtype: of the dequantised weight.
        is_multiplied: whether it is also multiplied in 8 bits.
    """
    return QuantizedTensor.from_float(weight, MULTIPLIED_ROWS if is_multiplied else ROWS).to(dtype)


def is_multiplied(weight: Any) -> bool:
    """Whether a weight is multiplied in 8 bits."""
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == MULTIPLIED_ROWS


def in_fp8(base_precision: str) -> bool:
    """Whether one of config.BASE_PRECISIONS stores the blocks' linear weights in 8 bits."""
    return base_precision != AS_LOADED


def linear_formats(twin: Any) -> Counter[str]:
    """How many of the repeated blocks' linear weights are in each format, by name; OURS = stored in 8 bits by us."""
    blocks = (block for _, block in repeated_blocks(twin))
    return Counter(_format(layer.weight) for block in blocks for layer in block.modules() if is_linear(layer))


def _format(weight: Any) -> str:
    if isinstance(weight, QuantizedTensor):
        return OURS if weight._layout_cls in (ROWS, MULTIPLIED_ROWS) else weight._layout_cls.removesuffix("Layout")
    return format_name(weight) if is_packed(weight) else str(weight.dtype).removeprefix("torch.")


def is_host_linear(module: nn.Module) -> bool:
    """Whether a linear layer is one of the host's, whose weights it can cast; plain nn.Linear layers are not."""
    return is_linear(module) and isinstance(module, comfy.ops.CastWeightBiasOp)


def is_quantised(weight: Any) -> bool:
    """Whether a weight must be dequantised by us: the host's quantised tensors, and plain fp8 tensors.

    Tensor classes of other nodes (GGUF) do not count: their own layers read them.
    """
    is_plain = type(weight) in (Tensor, nn.Parameter)
    return isinstance(weight, QuantizedTensor) or (is_plain and weight.dtype in (FP8, torch.float8_e5m2))


def dense(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The dequantised weight as a plain tensor."""
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize().to(dtype)
    return _from_e4m3(weight, None, dtype) if weight.dtype == FP8 and weight.dim() == 2 else weight.to(dtype)


def _from_e4m3(numbers: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    if numbers.is_cuda and dtype.itemsize <= 4 and has_kernels(numbers.device):
        from ..kernels import from_e4m3

        return from_e4m3(numbers.contiguous(), scale, dtype)
    if scale is None:
        return numbers.to(dtype)
    exact = torch.float32 if dtype == torch.float16 else dtype  # fp16 cannot hold the smallest scales
    return numbers.to(exact).mul_(scale.to(exact)).to(dtype)
