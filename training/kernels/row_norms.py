# pyright: reportArgumentType=false
"""Layer norm and RMS norm: over the last dimension."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch, padded

ELEMENTS = 4096
"""of a program, at least one row"""


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (Ba et al., arXiv:1607.06450), as torch's layer_norm.

    Args:
        x: (..., C), at most four dimensions; the last one lies dense, the others as they like.
        weight, bias: (C,); None = 1 and 0.

    Returns:
        (..., C), its dimensions in memory in the order of x's.
    """
    return _RowNorm.apply(x, weight, bias, eps, True)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv:1910.07467), as torch's rms_norm.

    Args:
        x: (..., C), at most four dimensions; the last one lies dense, the others as they like.
        weight: (C,).

    Returns:
        (..., C), its dimensions in memory in the order of x's.
    """
    return _RowNorm.apply(x, weight, None, eps, False)


class _RowNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, is_centred: bool
    ) -> Tensor:
        output = torch.empty_like(x)
        moments = torch.empty(1 + is_centred, *x.shape[:-1], device=x.device, dtype=torch.float32)
        _rows(x, weight, bias, output, moments, output, eps, is_centred, backward=False)
        ctx.save_for_backward(x, weight, moments)
        ctx.is_centred = is_centred
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, moments = ctx.saved_tensors
        output = torch.empty_like(x)
        _rows(x, weight, None, output, moments, last_dense(gradients[0]), 0.0, ctx.is_centred, backward=True)
        return output, *(None,) * 4


def _rows(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor,
    moments: Tensor,
    gradient: Tensor,
    eps: float,
    is_centred: bool,
    backward: bool,
) -> None:
    width, number = x.shape[-1], moments[0].numel()
    block = triton.next_power_of_2(width)
    rows = max(1, ELEMENTS // block)
    _, second, third = padded(x.shape[:-1], 1)
    strides = [stride for each in (x, output, gradient) for stride in padded(each.stride()[:-1], 0)]
    launch(
        _norm, (triton.cdiv(number, rows),),
        x, x if weight is None else weight, x if bias is None else bias, output, moments, gradient, eps, number,
        second, third, *strides, width, weight is not None, bias is not None, is_centred, backward, rows, block,
    )  # fmt: skip


@triton.jit
def _norm(
    x, weight, bias, output, moments, gradient, eps, number, second, third, x_0, x_1, x_2, output_0, output_1,
    output_2, gradient_0, gradient_1, gradient_2, width, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    CENTRED: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """moments: 1 / deviation of each row and, where it is centred, its mean behind."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    a, b, c = row // (second * third), row // third % second, row % third
    column = tl.arange(0, BLOCK)
    inside = (column < width)[None, :]
    there = (row < number)[:, None] & inside
    value = tl.load(x + (a * x_0 + b * x_1 + c * x_2)[:, None] + column[None, :], there, 0.0).to(tl.float32)
    if CENTRED:
        if BACKWARD:
            mean = tl.load(moments + number + row, row < number, 0.0)
        else:
            mean = tl.sum(value, 1) / width
            tl.store(moments + number + row, mean, row < number)
        value = tl.where(inside, value - mean[:, None], 0.0)
    if BACKWARD:
        by = tl.load(moments + row, row < number, 0.0)[:, None]
        at = (a * gradient_0 + b * gradient_1 + c * gradient_2)[:, None] + column[None, :]
        result = tl.load(gradient + at, there, 0.0).to(tl.float32)
        if WEIGHT:
            result *= tl.load(weight + column, column < width, 0.0).to(tl.float32)[None, :]
        normal = value * by
        along = (tl.sum(result * normal, 1) / width)[:, None] * normal
        if CENTRED:
            along += (tl.sum(result, 1) / width)[:, None]
        result = by * (result - along)
    else:
        by = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
        tl.store(moments + row, by, row < number)
        result = value * by[:, None]
        if WEIGHT:
            result *= tl.load(weight + column, column < width, 0.0).to(tl.float32)[None, :]
        if BIAS:
            result += tl.load(bias + column, column < width, 0.0).to(tl.float32)[None, :]
    at = (a * output_0 + b * output_1 + c * output_2)[:, None] + column[None, :]
    tl.store(output + at, result.to(output.dtype.element_ty), there)
