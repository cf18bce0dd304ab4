# pyright: reportArgumentType=false
"""Layer norm and RMS norm over the last dimension."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch, numbered, padded

ELEMENTS = 4096
"""per program, at least one row"""


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (Ba et al., arXiv:1607.06450), as torch's layer_norm.

    Args:
        x: (..., C), at most four dimensions, the last one of stride 1.
        weight, bias: (C,); None = 1 and 0.

    Returns:
        (..., C), with the memory layout of x.
    """
    return _RowNorm.apply(x, weight, bias, eps, True)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv:1910.07467), as torch's rms_norm.

    Args:
        x: (..., C), at most four dimensions, the last one of stride 1.
        weight: (C,).

    Returns:
        (..., C), with the memory layout of x.
    """
    return _RowNorm.apply(x, weight, None, eps, False)


class _RowNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, is_centred: bool
    ) -> Tensor:
        output = torch.empty_like(x)
        moments = torch.empty(1 + is_centred, *x.shape[:-1], device=x.device, dtype=torch.float32)
        _launch_norm(x, weight, output, moments, bias=bias, eps=eps)
        ctx.save_for_backward(x, weight, moments)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, moments = ctx.saved_tensors
        grad_input = torch.empty_like(x)
        _launch_norm(x, weight, grad_input, moments, grad_output=last_dense(grad_outputs[0]))
        return grad_input, *(None,) * 4


def _launch_norm(
    x: Tensor,
    weight: Tensor | None,
    output: Tensor,
    moments: Tensor,
    *,
    bias: Tensor | None = None,
    eps: float = 0.0,
    grad_output: Tensor | None = None,
) -> None:
    """Writes the norm of x, or with grad_output the gradient of x, into output.

    Args:
        moments: (1, ...) 1 / standard deviation of each row, or (2, ...) with its mean behind; written by the forward
            pass, read by the backward pass.
        bias, eps: for the forward pass.
    """
    width, number = x.shape[-1], moments[0].numel()
    block = triton.next_power_of_2(width)
    rows = max(1, ELEMENTS // block)
    _, second, third = padded(x.shape[:-1], 1)
    gradient = output if grad_output is None else grad_output
    tensors = dict(x=x, output=output, gradient=gradient)
    launch(
        _norm,
        (triton.cdiv(number, rows),),
        **tensors,
        **dict(weight=x if weight is None else weight, bias=x if bias is None else bias, moments=moments),
        **dict(eps=eps, number=number, second=second, third=third, width=width),
        **numbered(**{name: padded(tensor.stride()[:-1], 0) for name, tensor in tensors.items()}),
        **dict(WEIGHT=weight is not None, BIAS=bias is not None, CENTRED=len(moments) == 2),
        **dict(BACKWARD=grad_output is not None, ROWS=rows, BLOCK=block),
    )


@triton.jit
def _norm(
    x, weight, bias, output, moments, gradient, eps, number, second, third, x_0, x_1, x_2, output_0, output_1,
    output_2, gradient_0, gradient_1, gradient_2, width, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    CENTRED: tl.constexpr, BACKWARD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The norm of rows, or the gradient of x; `moments` as in `_launch_norm`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    a, b, c = row // (second * third), row // third % second, row % third
    column = tl.arange(0, BLOCK)
    inside = (column < width)[None, :]
    in_tile = (row < number)[:, None] & inside
    value = tl.load(x + (a * x_0 + b * x_1 + c * x_2)[:, None] + column[None, :], in_tile, 0.0).to(tl.float32)
    if CENTRED:
        if BACKWARD:
            mean = tl.load(moments + number + row, row < number, 0.0)
        else:
            mean = tl.sum(value, 1) / width
            tl.store(moments + number + row, mean, row < number)
        value = tl.where(inside, value - mean[:, None], 0.0)
    if BACKWARD:
        inverse_deviation = tl.load(moments + row, row < number, 0.0)[:, None]
        at = (a * gradient_0 + b * gradient_1 + c * gradient_2)[:, None] + column[None, :]
        result = tl.load(gradient + at, in_tile, 0.0).to(tl.float32)
        if WEIGHT:
            result *= tl.load(weight + column, column < width, 0.0).to(tl.float32)[None, :]
        normal = value * inverse_deviation
        along = (tl.sum(result * normal, 1) / width)[:, None] * normal
        if CENTRED:
            along += (tl.sum(result, 1) / width)[:, None]
        result = inverse_deviation * (result - along)
    else:
        inverse_deviation = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
        tl.store(moments + row, inverse_deviation, row < number)
        result = value * inverse_deviation[:, None]
        if WEIGHT:
            result *= tl.load(weight + column, column < width, 0.0).to(tl.float32)[None, :]
        if BIAS:
            result += tl.load(bias + column, column < width, 0.0).to(tl.float32)[None, :]
    at = (a * output_0 + b * output_1 + c * output_2)[:, None] + column[None, :]
    tl.store(output + at, result.to(output.dtype.element_ty), in_tile)
