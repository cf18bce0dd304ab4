# pyright: reportArgumentType=false
"""Rotary position embedding of adjacent pairs."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch, numbered

ELEMENTS = 4096
"""per program, at least one row"""


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Multiplies each adjacent pair of x's last dimension by its 2 x 2 matrix (Su et al., arXiv:2104.09864).

    Args:
        x: (A, B, C, D).
        rotations: (A or 1, B or 1, C or 1, D / 2, 2, 2) float32.

    Returns:
        (A, B, C, D); in memory the dimension of B or C that shares its rotations is the inner one, as attention needs.
    """
    return _Rotate.apply(x, rotations)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rotations: Tensor) -> Tensor:
        ctx.save_for_backward(rotations)
        return _launch_rotate(x, rotations, backward=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (rotations,) = ctx.saved_tensors
        return _launch_rotate(grad_outputs[0], rotations, backward=True), None


def _launch_rotate(x: Tensor, rotations: Tensor, backward: bool) -> Tensor:
    x = last_dense(x)
    rotations = rotations if rotations.stride()[3:] == (4, 2, 1) else rotations.contiguous()
    first, second, third, width = x.shape
    if rotations.shape[1] == 1:
        output = torch.empty(first, third, second, width, device=x.device, dtype=x.dtype).transpose(1, 2)
    else:
        output = torch.empty(x.shape, device=x.device, dtype=x.dtype)
    block = triton.next_power_of_2(width)
    rows = max(1, ELEMENTS // block)
    number = first * second * third
    rotation_strides = [rotations.stride(axis) if rotations.shape[axis] > 1 else 0 for axis in range(3)]
    launch(
        _rotate_pairs,
        (triton.cdiv(number, rows),),
        **dict(x=x, rotations=rotations, output=output, number=number, second=second, third=third),
        **numbered(x=x.stride()[:3], output=output.stride()[:3], rotation=rotation_strides),
        **dict(width=width, BACKWARD=backward, ROWS=rows, BLOCK=block),
    )
    return output


@triton.jit
def _rotate_pairs(
    x, rotations, output, number, second, third, x_0, x_1, x_2, output_0, output_1, output_2,
    rotation_0, rotation_1, rotation_2, width, BACKWARD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    a, b, c = row // (second * third), row // third % second, row % third
    column = tl.arange(0, BLOCK)
    inside = (row < number)[:, None] & (column < width)[None, :]
    start = a * x_0 + b * x_1 + c * x_2
    value = tl.load(x + start[:, None] + column[None, :], inside, 0.0).to(tl.float32)
    first, other = tl.split(tl.reshape(value, (ROWS, BLOCK // 2, 2)))
    entry = tl.arange(0, 2 * BLOCK)
    in_matrices = (row < number)[:, None] & (entry < 2 * width)[None, :]
    start = a * rotation_0 + b * rotation_1 + c * rotation_2
    matrix = tl.load(rotations + start[:, None] + entry[None, :], in_matrices, 0.0)
    left, right = tl.split(tl.reshape(matrix, (ROWS, BLOCK // 2, 2, 2)))  # the columns of each matrix
    left_top, left_bottom = tl.split(left)
    right_top, right_bottom = tl.split(right)
    if BACKWARD:  # by the transposed matrices
        result = tl.join(left_top * first + left_bottom * other, right_top * first + right_bottom * other)
    else:
        result = tl.join(left_top * first + right_top * other, left_bottom * first + right_bottom * other)
    at = (a * output_0 + b * output_1 + c * output_2)[:, None] + column[None, :]
    tl.store(output + at, tl.reshape(result, (ROWS, BLOCK)).to(output.dtype.element_ty), inside)
