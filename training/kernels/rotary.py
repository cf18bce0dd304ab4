# pyright: reportArgumentType=false
"""Rotary position embedding of pairs that lie side by side."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch

ELEMENTS = 4096
"""of a program, at least one row"""


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Every pair of x's last dimension turned by its own 2 x 2 matrix (Su et al., arXiv:2104.09864).

    Args:
        x: (A, B, C, D).
        turns: (A or 1, B or 1, C or 1, D / 2, 2, 2) float32.

    Returns:
        (A, B, C, D); in memory what the turns depend on comes before what they do not, as attention likes it.
    """
    return _Rotate.apply(x, turns)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor) -> Tensor:
        ctx.save_for_backward(turns)
        return _turned(x, turns, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (turns,) = ctx.saved_tensors
        return _turned(gradients[0], turns, backward=True), None


def _turned(x: Tensor, turns: Tensor, backward: bool) -> Tensor:
    x = last_dense(x)
    turns = turns if turns.stride()[3:] == (4, 2, 1) else turns.contiguous()
    first, second, third, width = x.shape
    if turns.shape[1] == 1:
        output = torch.empty(first, third, second, width, device=x.device, dtype=x.dtype).transpose(1, 2)
    else:
        output = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    block = triton.next_power_of_2(width)
    rows = max(1, ELEMENTS // block)
    number = first * second * third
    turn_strides = [turns.stride(place) if turns.shape[place] > 1 else 0 for place in range(3)]
    launch(
        _turn, (triton.cdiv(number, rows),),
        x, turns, output, number, second, third, *x.stride()[:3], *output.stride()[:3], *turn_strides, width, backward,
        rows, block,
    )  # fmt: skip
    return output


@triton.jit
def _turn(
    x, turns, output, number, second, third, x_0, x_1, x_2, output_0, output_1, output_2, turn_0, turn_1, turn_2,
    width, BACKWARD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    a, b, c = row // (second * third), row // third % second, row % third
    column = tl.arange(0, BLOCK)
    there = (row < number)[:, None] & (column < width)[None, :]
    place = a * x_0 + b * x_1 + c * x_2
    value = tl.load(x + place[:, None] + column[None, :], there, 0.0).to(tl.float32)
    first, other = tl.split(tl.reshape(value, (ROWS, BLOCK // 2, 2)))
    entry = tl.arange(0, 2 * BLOCK)
    exists = (row < number)[:, None] & (entry < 2 * width)[None, :]
    place = a * turn_0 + b * turn_1 + c * turn_2
    matrix = tl.load(turns + place[:, None] + entry[None, :], exists, 0.0)
    left, right = tl.split(tl.reshape(matrix, (ROWS, BLOCK // 2, 2, 2)))  # the columns of each matrix
    left_top, left_bottom = tl.split(left)
    right_top, right_bottom = tl.split(right)
    if BACKWARD:  # by the transposed matrices
        result = tl.join(left_top * first + left_bottom * other, right_top * first + right_bottom * other)
    else:
        result = tl.join(left_top * first + right_top * other, left_bottom * first + right_bottom * other)
    at = (a * output_0 + b * output_1 + c * output_2)[:, None] + column[None, :]
    tl.store(output + at, tl.reshape(result, (ROWS, BLOCK)).to(output.dtype.element_ty), there)
