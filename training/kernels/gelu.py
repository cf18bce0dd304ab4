# pyright: reportArgumentType=false
"""GELU of a tensor whose rows may lie apart, such as a slice of a layer's output."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch

ELEMENTS = 1024
"""per program"""


def gelu(x: Tensor) -> Tensor:
    """GELU (Hendrycks and Gimpel, arXiv:1606.08415) in the tanh approximation.

    Args:
        x: (..., C), each row contiguous, at equal distances.

    Returns:
        (..., C), contiguous.
    """
    return _GELU.apply(x)


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _launch_gelu(x, x, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return _launch_gelu(x, grad_outputs[0], backward=True)


def _launch_gelu(x: Tensor, grad_output: Tensor, backward: bool) -> Tensor:
    output = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    x, grad_output = _rows(x), _rows(grad_output)
    rows, width = x.shape
    launch(
        _gelu,
        (rows, triton.cdiv(width, ELEMENTS)),
        **dict(x=x, grad_output=grad_output, output=output, stride=x.stride(0), grad_stride=grad_output.stride(0)),
        **dict(width=width, BACKWARD=backward, ELEMENTS=ELEMENTS),
    )
    return output


def _rows(x: Tensor) -> Tensor:
    """(..., C) -> (rows, C), as a view if possible."""
    return last_dense(x.reshape(-1, x.shape[-1]))


@triton.jit
def _gelu(x, grad_output, output, stride, grad_stride, width, BACKWARD: tl.constexpr, ELEMENTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = column < width
    value = tl.load(x + row * stride + column, inside, 0.0).to(tl.float32)
    cube = 0.044715 * value * value
    share = tl.sigmoid(1.5957691216057308 * value * (1.0 + cube))  # (1 + tanh(z)) / 2 = sigmoid(2 z)
    result = value * share
    if BACKWARD:
        slope = 1.5957691216057308 * (1.0 + 3.0 * cube)
        result = share + result * (1.0 - share) * slope
        result *= tl.load(grad_output + row * grad_stride + column, inside, 0.0).to(tl.float32)
    tl.store(output + row * width + column, result.to(output.dtype.element_ty), inside)
