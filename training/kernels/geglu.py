# pyright: reportArgumentType=false
"""GEGLU, the gated activation in a UNet's feed-forward layers."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import launch

ELEMENTS = 1024
"""per program"""


def geglu(x: Tensor) -> Tensor:
    """The first half of the last dimension times GELU of the second (Shazeer, arXiv:2002.05202).

    Args:
        x: (..., 2 C), contiguous.

    Returns:
        (..., C)
    """
    return _GEGLU.apply(x)


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        width = x.shape[-1] // 2
        output = torch.empty(*x.shape[:-1], width, device=x.device, dtype=x.dtype)
        number = output.numel()
        grid = (triton.cdiv(number, ELEMENTS),)
        launch(_geglu_forward, grid, x=x, output=output, number=number, width=width, ELEMENTS=ELEMENTS)
        ctx.save_for_backward(x)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        grad_output, output = grad_outputs[0].contiguous(), torch.empty_like(x)
        number = grad_output.numel()
        grid = (triton.cdiv(number, ELEMENTS),)
        arguments = dict(x=x, grad_output=grad_output, output=output, number=number, width=x.shape[-1] // 2)
        launch(_geglu_backward, grid, **arguments, ELEMENTS=ELEMENTS)
        return output


@triton.jit
def _geglu_forward(x, output, number, width, ELEMENTS: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = index < number
    at = index + (index // width) * width
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    gate = tl.load(x + at + width, inside, 0.0).to(tl.float32)
    result = value * gate * (0.5 + 0.5 * tl.erf(gate * 0.7071067811865476))
    tl.store(output + index, result.to(output.dtype.element_ty), inside)


@triton.jit
def _geglu_backward(x, grad_output, output, number, width, ELEMENTS: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = index < number
    at = index + (index // width) * width
    value = tl.load(x + at, inside, 0.0).to(tl.float32)
    gate = tl.load(x + at + width, inside, 0.0).to(tl.float32)
    grad = tl.load(grad_output + index, inside, 0.0).to(tl.float32)
    normal = 0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(output + at, (grad * gate * normal).to(output.dtype.element_ty), inside)
    tl.store(output + at + width, (grad * value * (normal + gate * density)).to(output.dtype.element_ty), inside)
