# pyright: reportArgumentType=false
"""Group norm of channels-last pictures, with SiLU behind it."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import launch

ROWS, CHANNELS, ELEMENTS = 32, 64, 1024
"""Sizes of a program's tile."""
PROGRAMS = 1024
"""Programs that fill the largest GPU; more would only make partial sums."""


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """SiLU, if asked, of the group norm (Wu and He, arXiv:1803.08494) of x (B, C, H, W), which lies channels last.

    Args:
        weight, bias: (C,).

    Returns:
        (B, C, H, W), channels last.
    """
    return _GroupNorm.apply(x, groups, weight, bias, eps, silu)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
        mean, deviation = _group_sums(x, groups, weight, bias, silu, eps)
        output = torch.empty_like(x)
        _apply(x, x, mean, deviation, mean, deviation, weight, bias, output, groups, silu, backward=False)
        ctx.save_for_backward(x, mean, deviation, weight, bias)
        ctx.groups, ctx.silu = groups, silu
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, mean, deviation, weight, bias = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        sums = _group_sums(x, ctx.groups, weight, bias, ctx.silu, 0.0, gradient, mean, deviation)
        output = torch.empty_like(x)
        _apply(x, gradient, mean, deviation, *sums, weight, bias, output, ctx.groups, ctx.silu, backward=True)
        return output, *(None,) * 5


def _group_sums(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    silu: bool,
    eps: float,
    gradient: Tensor | None = None,
    mean: Tensor | None = None,
    deviation: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Forward: mean and 1 / deviation of each group. Backward: the means of g and g x^, g = d output / d x^."""
    batch, channels, height, width = x.shape
    rows, blocks = height * width, triton.cdiv(channels, CHANNELS)
    chunks = max(1, min(triton.cdiv(rows, ROWS), PROGRAMS // (batch * blocks)))
    partial = torch.empty(2, batch, chunks, channels, device=x.device, dtype=torch.float32)
    sums = torch.empty(2, batch, groups, device=x.device, dtype=torch.float32)
    backward = gradient is not None
    launch(
        _channel_sums, (batch, chunks, blocks),
        x, gradient if backward else x, mean if backward else sums, deviation if backward else sums, weight, bias,
        partial[0], partial[1], rows, channels, channels // groups, chunks,
        triton.cdiv(triton.cdiv(rows, chunks), ROWS) * ROWS, backward, silu, ROWS, CHANNELS,
    )  # fmt: skip
    launch(
        _gather_groups, (batch, groups),
        partial[0], partial[1], sums[0], sums[1], chunks, channels, channels // groups, rows * (channels // groups),
        eps, backward, ELEMENTS,
    )  # fmt: skip
    return sums[0], sums[1]


def _apply(
    x: Tensor,
    gradient: Tensor,
    mean: Tensor,
    deviation: Tensor,
    first: Tensor,
    second: Tensor,
    weight: Tensor,
    bias: Tensor,
    output: Tensor,
    groups: int,
    silu: bool,
    backward: bool,
) -> None:
    batch, channels, height, width = x.shape
    rows = height * width
    grid = (batch, triton.cdiv(rows, ROWS), triton.cdiv(channels, CHANNELS))
    launch(
        _normalise, grid,
        x, gradient, mean, deviation, first, second, weight, bias, output, rows, channels, channels // groups,
        backward, silu, ROWS, CHANNELS,
    )  # fmt: skip


@triton.jit
def _gradient_of_silu(z):
    sigmoid = tl.sigmoid(z)
    return sigmoid * (1.0 + z * (1.0 - sigmoid))


@triton.jit
def _channel_sums(
    x, gradient, mean, deviation, weight, bias, first, second, rows, channels, group, chunks, CHUNK: tl.constexpr,
    BACKWARD: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Per channel over a chunk of rows: the sums of x and x^2, or those of g and g x^."""
    batch = tl.program_id(0).to(tl.int64)
    column = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = column < channels
    start = tl.program_id(1) * CHUNK
    total = tl.zeros((ROWS, CHANNELS), tl.float32)  # summed over rows at the end: that is slow
    other = tl.zeros((ROWS, CHANNELS), tl.float32)
    if BACKWARD:
        place = batch * (channels // group) + column // group
        m = tl.load(mean + place, inside, 0.0)
        d = tl.load(deviation + place, inside, 0.0)
        w = tl.load(weight + column, inside, 0.0).to(tl.float32)
        b = tl.load(bias + column, inside, 0.0).to(tl.float32)
    for offset in range(0, CHUNK, ROWS):
        row = start + offset + tl.arange(0, ROWS)
        there = (row < rows)[:, None] & inside[None, :]
        at = batch * rows * channels + row[:, None] * channels + column[None, :]
        value = tl.load(x + at, there, 0.0).to(tl.float32)
        if BACKWARD:
            g = tl.load(gradient + at, there, 0.0).to(tl.float32)
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
    """Over the chunks and channels of a group."""
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
    x, gradient, mean, deviation, first, second, weight, bias, output, rows, channels, group,
    BACKWARD: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside = column < channels
    there = (row < rows)[:, None] & inside[None, :]
    place = batch * (channels // group) + column // group
    m = tl.load(mean + place, inside, 0.0)
    d = tl.load(deviation + place, inside, 0.0)
    w = tl.load(weight + column, inside, 0.0).to(tl.float32)
    b = tl.load(bias + column, inside, 0.0).to(tl.float32)
    at = batch * rows * channels + row[:, None] * channels + column[None, :]
    normal = (tl.load(x + at, there, 0.0).to(tl.float32) - m[None, :]) * d[None, :]
    z = normal * w[None, :] + b[None, :]
    if BACKWARD:
        g = tl.load(gradient + at, there, 0.0).to(tl.float32)
        if SILU:
            g *= _gradient_of_silu(z)
        mean_g = tl.load(first + place, inside, 0.0)
        mean_gx = tl.load(second + place, inside, 0.0)
        z = d[None, :] * (g * w[None, :] - mean_g[None, :] - normal * mean_gx[None, :])
    elif SILU:
        z *= tl.sigmoid(z)
    tl.store(output + at, z.to(output.dtype.element_ty), there)
