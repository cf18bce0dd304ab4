# pyright: reportArgumentType=false
"""Group norm of channels-last images, optionally followed by SiLU."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import launch

ROWS, CHANNELS, ELEMENTS = 32, 64, 1024
"""of a program's tile"""
MOST_PROGRAMS = 1024
"""enough to fill the largest GPU; more would only add partial sums"""


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """Group norm (Wu and He, arXiv:1803.08494), optionally followed by SiLU.

    Args:
        x: (B, C, H, W), channels last.
        weight, bias: (C,).
        silu: apply SiLU to the result.

    Returns:
        (B, C, H, W), channels last.
    """
    return _GroupNorm.apply(x, groups, weight, bias, eps, silu)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
        statistics = _group_statistics(x, groups, weight, bias, silu, eps=eps)
        output = torch.empty_like(x)
        _launch_normalise(x, weight, bias, statistics, output, silu=silu)
        mean, deviation = statistics
        ctx.save_for_backward(x, mean, deviation, weight, bias)
        ctx.groups, ctx.silu = groups, silu
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, mean, deviation, weight, bias = ctx.saved_tensors
        grad_output = grad_outputs[0].contiguous(memory_format=torch.channels_last)
        forward = (mean, deviation)
        means = _group_statistics(x, ctx.groups, weight, bias, ctx.silu, grad_output=grad_output, forward=forward)
        output = torch.empty_like(x)
        _launch_normalise(x, weight, bias, forward, output, silu=ctx.silu, grad_output=grad_output, means=means)
        return output, *(None,) * 5


def _group_statistics(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    silu: bool,
    *,
    eps: float = 0.0,
    grad_output: Tensor | None = None,
    forward: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(B, groups) float32 each. Forward: mean and 1 / standard deviation. Backward: the means of g and g x^.

    x^ is the normalised x, g = d output / d x^.

    Args:
        eps: for the forward pass.
        grad_output, forward: for the backward pass; `forward` is the result of the forward pass.
    """
    batch, channels, height, width = x.shape
    rows, blocks = height * width, triton.cdiv(channels, CHANNELS)
    chunks = max(1, min(triton.cdiv(rows, ROWS), MOST_PROGRAMS // (batch * blocks)))
    partial = torch.empty(2, batch, chunks, channels, device=x.device, dtype=torch.float32)
    sums = torch.empty(2, batch, groups, device=x.device, dtype=torch.float32)
    is_backward = grad_output is not None
    mean, deviation = forward or (sums, sums)  # not read in the forward pass
    launch(
        _channel_sums,
        (batch, chunks, blocks),
        **dict(x=x, grad_output=grad_output if is_backward else x, mean=mean, deviation=deviation),
        **dict(weight=weight, bias=bias, first=partial[0], second=partial[1]),
        **dict(rows=rows, channels=channels, group=channels // groups, chunks=chunks),
        **dict(CHUNK=triton.cdiv(triton.cdiv(rows, chunks), ROWS) * ROWS, BACKWARD=is_backward, SILU=silu),
        **dict(ROWS=ROWS, CHANNELS=CHANNELS),
    )
    launch(
        _gather_groups,
        (batch, groups),
        **dict(first=partial[0], second=partial[1], total=sums[0], other=sums[1]),
        **dict(chunks=chunks, channels=channels, group=channels // groups, count=rows * (channels // groups)),
        **dict(eps=eps, BACKWARD=is_backward, ELEMENTS=ELEMENTS),
    )
    return sums[0], sums[1]


def _launch_normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple[Tensor, Tensor],
    output: Tensor,
    *,
    silu: bool,
    grad_output: Tensor | None = None,
    means: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Writes the normalised x, or the gradient of x, into output.

    Args:
        statistics: (mean, 1 / standard deviation) of each group.
        grad_output, means: for the backward pass; `means` of g and g x^, as `_group_statistics` gives them.
    """
    batch, channels, height, width = x.shape
    rows = height * width
    mean, deviation = statistics
    first, second = means or statistics  # not read in the forward pass
    launch(
        _normalise,
        (batch, triton.cdiv(rows, ROWS), triton.cdiv(channels, CHANNELS)),
        **dict(x=x, grad_output=x if grad_output is None else grad_output, mean=mean, deviation=deviation),
        **dict(first=first, second=second, weight=weight, bias=bias, output=output),
        **dict(rows=rows, channels=channels, group=channels // mean.shape[1]),
        **dict(BACKWARD=grad_output is not None, SILU=silu, ROWS=ROWS, CHANNELS=CHANNELS),
    )


@triton.jit
def _gradient_of_silu(z):
    sigmoid = tl.sigmoid(z)
    return sigmoid * (1.0 + z * (1.0 - sigmoid))


@triton.jit
def _channel_sums(
    x, grad_output, mean, deviation, weight, bias, first, second, rows, channels, group, chunks, CHUNK: tl.constexpr,
    BACKWARD: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """For each channel of a chunk of rows: the sums of x and x^2 or, backward, of g and g x^."""
    batch = tl.program_id(0).to(tl.int64)
    column = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = column < channels
    start = tl.program_id(1) * CHUNK
    total = tl.zeros((ROWS, CHANNELS), tl.float32)  # summed over the rows after the loop, as that is slow
    other = tl.zeros((ROWS, CHANNELS), tl.float32)
    if BACKWARD:
        group_index = batch * (channels // group) + column // group
        m = tl.load(mean + group_index, inside, 0.0)
        d = tl.load(deviation + group_index, inside, 0.0)
        w = tl.load(weight + column, inside, 0.0).to(tl.float32)
        b = tl.load(bias + column, inside, 0.0).to(tl.float32)
    for offset in range(0, CHUNK, ROWS):
        row = start + offset + tl.arange(0, ROWS)
        in_tile = (row < rows)[:, None] & inside[None, :]
        at = batch * rows * channels + row[:, None] * channels + column[None, :]
        value = tl.load(x + at, in_tile, 0.0).to(tl.float32)
        if BACKWARD:
            g = tl.load(grad_output + at, in_tile, 0.0).to(tl.float32)
            normal = (value - m[None, :]) * d[None, :]
            if SILU:
                g *= _gradient_of_silu(normal * w[None, :] + b[None, :])
            g *= w[None, :]
            total += g
            other += g * normal
        else:
            total += value
            other += value * value
    at = (batch * chunks + tl.program_id(1)) * channels + column
    tl.store(first + at, tl.sum(total, 0), inside)
    tl.store(second + at, tl.sum(other, 0), inside)


@triton.jit
def _gather_groups(
    first, second, total, other, chunks, channels, group, count, eps, BACKWARD: tl.constexpr, ELEMENTS: tl.constexpr
):
    """Sums over the chunks and channels of a group."""
    batch = tl.program_id(0).to(tl.int64)
    a = tl.zeros((ELEMENTS,), tl.float32)
    b = tl.zeros((ELEMENTS,), tl.float32)
    offset = 0
    while offset < chunks * group:
        index = offset + tl.arange(0, ELEMENTS)
        inside = index < chunks * group
        at = (batch * chunks + index // group) * channels + tl.program_id(1) * group + index % group
        a += tl.load(first + at, inside, 0.0)
        b += tl.load(second + at, inside, 0.0)
        offset += ELEMENTS
    mean = tl.sum(a, 0) / count
    square = tl.sum(b, 0) / count
    if not BACKWARD:
        square = 1.0 / tl.sqrt(tl.maximum(square - mean * mean, 0.0) + eps)
    at = batch * tl.num_programs(1) + tl.program_id(1)
    tl.store(total + at, mean)
    tl.store(other + at, square)


@triton.jit
def _normalise(
    x, grad_output, mean, deviation, first, second, weight, bias, output, rows, channels, group,
    BACKWARD: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = column < channels
    in_tile = (row < rows)[:, None] & inside[None, :]
    group_index = batch * (channels // group) + column // group
    m = tl.load(mean + group_index, inside, 0.0)
    d = tl.load(deviation + group_index, inside, 0.0)
    w = tl.load(weight + column, inside, 0.0).to(tl.float32)
    b = tl.load(bias + column, inside, 0.0).to(tl.float32)
    at = batch * rows * channels + row[:, None] * channels + column[None, :]
    normal = (tl.load(x + at, in_tile, 0.0).to(tl.float32) - m[None, :]) * d[None, :]
    z = normal * w[None, :] + b[None, :]
    if BACKWARD:
        g = tl.load(grad_output + at, in_tile, 0.0).to(tl.float32)
        if SILU:
            g *= _gradient_of_silu(z)
        mean_g = tl.load(first + group_index, inside, 0.0)
        mean_gx = tl.load(second + group_index, inside, 0.0)
        z = d[None, :] * (g * w[None, :] - mean_g[None, :] - normal * mean_gx[None, :])
    elif SILU:
        z *= tl.sigmoid(z)
    tl.store(output + at, z.to(output.dtype.element_ty), in_tile)
