# pyright: reportArgumentType=false
"""GELU of numbers that need not lie side by side, as those of one part of a layer's output."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch

ELEMENTS = 1024
"""of a program"""


def gelu(x: Tensor) -> Tensor:
    """GELU (Hendrycks and Gimpel, arXiv:1606.08415), by its approximation with tanh.

    Args:
        x: (..., C), whose rows lie dense and at equal distances.

    Returns:
        (..., C), contiguous.
    """
    return _GELU.apply(x)


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _by_rows(x, x, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return _by_rows(x, gradients[0], backward=True)


def _by_rows(x: Tensor, gradient: Tensor, backward: bool) -> Tensor:
    output = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    x, gradient = _rows(x), _rows(gradient)
    rows, width = x.shape
    launch(
        _gelu, (rows, triton.cdiv(width, ELEMENTS)),
        x, gradient, output, x.stride(0), gradient.stride(0), width, backward, ELEMENTS,
    )  # fmt: skip
    return output


def _rows(x: Tensor) -> Tensor:
    """(rows, C), as a view where that goes."""
    return last_dense(x.reshape(-1, x.shape[-1]))


@triton.jit
def _gelu(x, gradient, output, stride, gradient_stride, width, BACKWARD: tl.constexpr, ELEMENTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    there = column < width
    value = tl.load(x + row * stride + column, there, 0.0).to(tl.float32)
    cube = 0.044715 * value * value
    share = tl.sigmoid(1.5957691216057308 * value * (1.0 + cube))  # (1 + tanh(z)) / 2 = sigmoid(2 z)
    result = value * share
    if BACKWARD:
        slope = 1.5957691216057308 * (1.0 + 3.0 * cube)
        result = share + result * (1.0 - share) * slope
        result *= tl.load(gradient + row * gradient_stride + column, there, 0.0).to(tl.float32)
    tl.store(output + row * width + column, result.to(output.dtype.element_ty), there)
