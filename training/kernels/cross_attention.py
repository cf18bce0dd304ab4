# pyright: reportArgumentType=false
"""Attention to few keys, as that of a picture to its caption."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch

PROGRAMS = 264
"""Programs that fill the largest GPU; more would only make partial sums."""
SOME_KEYS, SOME_CHUNKS = 8, 16
"""that a program adds up"""


def cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al., arXiv:1706.03762), for few keys.

    Since a program sees all keys at once, nothing but q, k and v is kept for the backward pass, and its programs share
    the queries, of which there are many, rather than the keys.

    Args:
        q: (B, H, L, D); k, v: (B, H, S, D), S and D so small that a program holds all keys of a head.

    Returns:
        (B, H, L, D), in memory (B, L, H, D).
    """
    return _CrossAttention.apply(last_dense(q), last_dense(k), last_dense(v))


def try_cross_attention(device: torch.device, dtype: torch.dtype, keys: int, width: int) -> None:
    """Runs all kernels for so many keys of this width. Raises what Triton raises where they cannot run."""
    q, k = (torch.zeros(1, 1, length, width, device=device, dtype=dtype) for length in (2, keys))
    _toward(q, k, k, _attended(q, k, k), are_keys_wanted=True)


class _CrossAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return _attended(q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        return _toward(q, k, v, last_dense(gradients[0]), any(ctx.needs_input_grad[1:]))


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    output = _like(q)
    queries, keys, width = q.shape[2], k.shape[2], q.shape[3]
    tile, warps = _tile(width)
    launch(
        _forward, (triton.cdiv(queries, tile), q.shape[0] * q.shape[1]),
        q, k, v, output, *_strides(q, k, v, output), q.shape[1], queries, keys, width, width**-0.5, tile,
        *_blocks(keys, width), num_warps=warps,
    )  # fmt: skip
    return output


def _toward(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, are_keys_wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of q, k and v."""
    batch, heads, queries, width = q.shape
    (tile, warps), blocks, keys, pairs = _tile(width), _blocks(k.shape[2], width), k.shape[2], batch * heads
    tiles = triton.cdiv(queries, tile)
    tiles_each = triton.cdiv(tiles, max(1, min(tiles, PROGRAMS // pairs)))
    chunks = triton.cdiv(tiles, tiles_each)
    toward_q = _like(q)
    kept = chunks if are_keys_wanted else 0
    partial = torch.empty(2, pairs, kept, keys, width, device=q.device, dtype=torch.float32)
    launch(
        _backward, (chunks, pairs),
        q, k, v, gradient, toward_q, partial[0], partial[1], *_strides(q, k, v, gradient, toward_q),
        heads, queries, keys, width, width**-0.5, tiles_each, are_keys_wanted, tile, *blocks, num_warps=warps,
    )  # fmt: skip
    if not are_keys_wanted:
        return toward_q, None, None
    toward_k, toward_v = _like(k), _like(v)
    launch(
        _add_up, (triton.cdiv(keys, SOME_KEYS), pairs, 2),
        partial, toward_k, toward_v, *_strides(toward_k), heads, keys, width, chunks, SOME_CHUNKS, SOME_KEYS,
        blocks[1],
    )  # fmt: skip
    return toward_q, toward_k, toward_v


def _like(x: Tensor) -> Tensor:
    """(B, H, L, D), in memory (B, L, H, D), as the layers before and behind have it."""
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width).transpose(1, 2)


def _tile(width: int) -> tuple[int, int]:
    """Queries of a program's tile, and its warps: the quicker ones on an H100."""
    return (64, 4) if width == 64 else (128, 8)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _blocks(keys: int, width: int) -> tuple[int, int]:
    """What a program reads of the keys: powers of two, at least what tensor cores multiply."""
    return int(triton.next_power_of_2(max(keys, 16))), int(triton.next_power_of_2(max(width, 16)))


@triton.jit
def _shares(q, k, keys, scale, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """What each query takes of each key: (QUERIES, KEYS) float32."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where((tl.arange(0, KEYS) < keys)[None, :], scores, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, 1)[:, None])
    return shares / tl.sum(shares, 1)[:, None]


@triton.jit
def _forward(
    q, k, v, output, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, o_b, o_h, o_l, heads, queries, keys, width, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    key, column = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    there = (row < queries)[:, None] & (column < width)[None, :]
    known = (key < keys)[:, None] & (column < width)[None, :]
    own = tl.load(q + batch * q_b + head * q_h + row[:, None] * q_l + column[None, :], there, 0.0)
    all_k = tl.load(k + batch * k_b + head * k_h + key[:, None] * k_l + column[None, :], known, 0.0)
    all_v = tl.load(v + batch * v_b + head * v_h + key[:, None] * v_l + column[None, :], known, 0.0)
    shares = _shares(own, all_k, keys, scale, QUERIES, KEYS)
    result = tl.dot(shares.to(all_v.dtype), all_v, input_precision="ieee")
    at = output + batch * o_b + head * o_h + row[:, None] * o_l + column[None, :]
    tl.store(at, result.to(output.dtype.element_ty), there)


@triton.jit
def _backward(
    q, k, v, gradient, toward_q, partial_k, partial_v, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l,
    t_b, t_h, t_l, heads, queries, keys, width, scale, tiles, WANTED: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient of some queries and, if wanted, what these queries give of those of the keys and values."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    key, column = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    known = (key < keys)[:, None] & (column < width)[None, :]
    all_k = tl.load(k + batch * k_b + head * k_h + key[:, None] * k_l + column[None, :], known, 0.0)
    all_v = tl.load(v + batch * v_b + head * v_h + key[:, None] * v_l + column[None, :], known, 0.0)
    sum_k = tl.zeros((KEYS, WIDTH), tl.float32)
    sum_v = tl.zeros((KEYS, WIDTH), tl.float32)
    tile = tl.program_id(0) * tiles
    while tile < (tl.program_id(0) + 1) * tiles:
        row = tile * QUERIES + tl.arange(0, QUERIES)
        there = (row < queries)[:, None] & (column < width)[None, :]
        own = tl.load(q + batch * q_b + head * q_h + row[:, None] * q_l + column[None, :], there, 0.0)
        g = tl.load(gradient + batch * g_b + head * g_h + row[:, None] * g_l + column[None, :], there, 0.0)
        shares = _shares(own, all_k, keys, scale, QUERIES, KEYS)
        if WANTED:
            sum_v += tl.dot(tl.trans(shares.to(g.dtype)), g, input_precision="ieee")
        toward_shares = tl.dot(g, tl.trans(all_v), input_precision="ieee")
        toward_scores = shares * (toward_shares - tl.sum(shares * toward_shares, 1)[:, None]) * scale
        toward_scores = toward_scores.to(own.dtype)
        if WANTED:
            sum_k += tl.dot(tl.trans(toward_scores), own, input_precision="ieee")
        result = tl.dot(toward_scores, all_k, input_precision="ieee")
        at = toward_q + batch * t_b + head * t_h + row[:, None] * t_l + column[None, :]
        tl.store(at, result.to(toward_q.dtype.element_ty), there)
        tile += 1
    if WANTED:
        place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        at = place * keys * width + key[:, None] * width + column[None, :]
        tl.store(partial_k + at, sum_k, known)
        tl.store(partial_v + at, sum_v, known)


@triton.jit
def _add_up(
    partial, toward_k, toward_v, t_b, t_h, t_l, heads, keys, width, chunks, CHUNKS: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """The chunks' parts of the gradients of keys and values, in a fixed order."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    key, column = tl.program_id(0) * KEYS + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    known = (key < keys)[:, None] & (column < width)[None, :]
    first = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * chunks
    total = tl.zeros((KEYS, WIDTH), tl.float32)
    start = 0
    while start < chunks:
        chunk = start + tl.arange(0, CHUNKS)
        at = (first + chunk)[:, None, None] * keys * width + (key[:, None] * width + column[None, :])[None]
        there = (chunk < chunks)[:, None, None] & known[None]
        total += tl.sum(tl.load(partial + at, there, 0.0), 0)
        start += CHUNKS
    at = batch * t_b + head * t_h + key[:, None] * t_l + column[None, :]
    result = total.to(toward_k.dtype.element_ty)
    if tl.program_id(2) == 0:
        tl.store(toward_k + at, result, known)
    else:
        tl.store(toward_v + at, result, known)
