# pyright: reportArgumentType=false
"""RMS norm over the last dimension."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch, padded

ELEMENTS = 4096
"""of a program, at least one row"""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv:1910.07467), as torch's rms_norm.

    Args:
        x: (..., C), at most four dimensions; the last one lies dense, the others as they like.
        weight: (C,).

    Returns:
        (..., C), its dimensions in memory in the order of x's.
    """
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        output = torch.empty_like(x)
        scale = torch.empty(x.shape[:-1], device=x.device, dtype=torch.float32)
        _rows(x, weight, output, scale, output, eps, backward=False)
        ctx.save_for_backward(x, weight, scale)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, scale = ctx.saved_tensors
        output = torch.empty_like(x)
        _rows(x, weight, output, scale, last_dense(gradients[0]), 0.0, backward=True)
        return output, None, None


def _rows(
    x: Tensor, weight: Tensor, output: Tensor, scale: Tensor, gradient: Tensor, eps: float, backward: bool
) -> None:
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    rows = max(1, ELEMENTS // block)
    _, second, third = padded(x.shape[:-1], 1)
    strides = [stride for each in (x, output, gradient) for stride in padded(each.stride()[:-1], 0)]
    launch(
        _norm, (triton.cdiv(scale.numel(), rows),),
        x, weight, output, scale, gradient, eps, scale.numel(), second, third, *strides, width, backward, rows, block,
    )  # fmt: skip


@triton.jit
def _norm(
    x, weight, output, scale, gradient, eps, number, second, third, x_0, x_1, x_2, output_0, output_1, output_2,
    gradient_0, gradient_1, gradient_2, width, BACKWARD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    a, b, c = row // (second * third), row // third % second, row % third
    column = tl.arange(0, BLOCK)
    there = (row < number)[:, None] & (column < width)[None, :]
    value = tl.load(x + (a * x_0 + b * x_1 + c * x_2)[:, None] + column[None, :], there, 0.0).to(tl.float32)
    w = tl.load(weight + column, column < width, 0.0).to(tl.float32)
    if BACKWARD:
        by = tl.load(scale + row, row < number, 0.0)[:, None]
        at = (a * gradient_0 + b * gradient_1 + c * gradient_2)[:, None] + column[None, :]
        g = tl.load(gradient + at, there, 0.0).to(tl.float32) * w[None, :]
        result = by * (g - value * by * (tl.sum(g * value * by, 1) / width)[:, None])
    else:
        by = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
        tl.store(scale + row, by, row < number)
        result = value * by[:, None] * w[None, :]
    at = (a * output_0 + b * output_1 + c * output_2)[:, None] + column[None, :]
    tl.store(output + at, result.to(output.dtype.element_ty), there)
