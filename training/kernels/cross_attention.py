# pyright: reportArgumentType=false
"""Attention to few keys, such as the cross-attention of a picture to its caption."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .launch import last_dense, launch

MOST_PROGRAMS = 264
"""enough to fill the largest GPU; more would only add partial sums"""
KEYS_PER_PROGRAM, CHUNKS_PER_READ = 8, 16
"""of the kernel that sums the partial gradients"""


def cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al., arXiv:1706.03762), for few keys.

    Each program holds all keys of a head, so the backward pass needs only q, k and v and is parallel over the queries.

    Args:
        q: (B, H, L, D).
        k, v: (B, H, S, D), with S and D small enough for one program.

    Returns:
        (B, H, L, D), in memory (B, L, H, D).
    """
    return _CrossAttention.apply(last_dense(q), last_dense(k), last_dense(v))


def try_cross_attention(device: torch.device, dtype: torch.dtype, keys: int, width: int) -> None:
    """Runs all kernels once for this number of keys and head width.

    Raises:
        Exception: of any type, by Triton, if the device cannot run them.
    """
    q, k = (torch.zeros(1, 1, length, width, device=device, dtype=dtype) for length in (2, keys))
    _gradients(q, k, k, _output(q, k, k), needs_kv=True)


class _CrossAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return _output(q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v = ctx.saved_tensors
        return _gradients(q, k, v, last_dense(grad_outputs[0]), any(ctx.needs_input_grad[1:]))


def _output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    output = _like(q)
    queries, keys, width = q.shape[2], k.shape[2], q.shape[3]
    tile, warps = _tile(width)
    block_keys, block_width = _blocks(keys, width)
    launch(
        _forward,
        (triton.cdiv(queries, tile), q.shape[0] * q.shape[1]),
        **dict(q=q, k=k, v=v, output=output),
        **_strides(q=q, k=k, v=v, o=output),
        **dict(heads=q.shape[1], queries=queries, keys=keys, width=width, scale=width**-0.5),
        **dict(QUERIES=tile, KEYS=block_keys, WIDTH=block_width),
        num_warps=warps,
    )
    return output


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, grad_output: Tensor, needs_kv: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of q, k and v; None for k and v if they are not needed."""
    batch, heads, queries, width = q.shape
    keys, pairs = k.shape[2], batch * heads
    tile, warps = _tile(width)
    block_keys, block_width = _blocks(keys, width)
    tiles = triton.cdiv(queries, tile)
    tiles_each = triton.cdiv(tiles, max(1, min(tiles, MOST_PROGRAMS // pairs)))
    chunks = triton.cdiv(tiles, tiles_each)
    grad_q = _like(q)
    saved_chunks = chunks if needs_kv else 0
    partial = torch.empty(2, pairs, saved_chunks, keys, width, device=q.device, dtype=torch.float32)
    launch(
        _backward,
        (chunks, pairs),
        **dict(q=q, k=k, v=v, grad_output=grad_output, grad_q=grad_q, partial_k=partial[0], partial_v=partial[1]),
        **_strides(q=q, k=k, v=v, g=grad_output, t=grad_q),
        **dict(heads=heads, queries=queries, keys=keys, width=width, scale=width**-0.5, tiles=tiles_each),
        **dict(NEEDS_KV=needs_kv, QUERIES=tile, KEYS=block_keys, WIDTH=block_width),
        num_warps=warps,
    )
    if not needs_kv:
        return grad_q, None, None
    grad_k, grad_v = _like(k), _like(v)
    launch(
        _sum_chunks,
        (triton.cdiv(keys, KEYS_PER_PROGRAM), pairs, 2),
        **dict(partial=partial, grad_k=grad_k, grad_v=grad_v),
        **_strides(t=grad_k),
        **dict(heads=heads, keys=keys, width=width, chunks=chunks),
        **dict(CHUNKS=CHUNKS_PER_READ, KEYS=KEYS_PER_PROGRAM, WIDTH=block_width),
    )
    return grad_q, grad_k, grad_v


def _like(x: Tensor) -> Tensor:
    """An empty (B, H, L, D), in memory (B, L, H, D), as the layers before and after attention have it."""
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width).transpose(1, 2)


def _tile(width: int) -> tuple[int, int]:
    """(queries per tile, warps per program): the fastest on an H100."""
    return (64, 4) if width == 64 else (128, 8)


def _strides(**tensors: Tensor) -> dict[str, int]:
    """The strides of batch, head and length: {"q_b": ..., "q_h": ..., "q_l": ...} of q."""
    return {
        f"{name}_{axis}": stride
        for name, tensor in tensors.items()
        for axis, stride in zip("bhl", tensor.stride()[:3], strict=True)
    }


def _blocks(keys: int, width: int) -> tuple[int, int]:
    """(keys, width) of a program's tile: powers of two, at least the 16 of tensor cores."""
    return int(triton.next_power_of_2(max(keys, 16))), int(triton.next_power_of_2(max(width, 16)))


@triton.jit
def _attention_weights(q, k, keys, scale, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """softmax(q k^T * scale): (QUERIES, KEYS) float32."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where((tl.arange(0, KEYS) < keys)[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def _forward(
    q, k, v, output, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, o_b, o_h, o_l, heads, queries, keys, width, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    key, column = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    in_q = (row < queries)[:, None] & (column < width)[None, :]
    in_k = (key < keys)[:, None] & (column < width)[None, :]
    tile_q = tl.load(q + batch * q_b + head * q_h + row[:, None] * q_l + column[None, :], in_q, 0.0)
    all_k = tl.load(k + batch * k_b + head * k_h + key[:, None] * k_l + column[None, :], in_k, 0.0)
    all_v = tl.load(v + batch * v_b + head * v_h + key[:, None] * v_l + column[None, :], in_k, 0.0)
    weights = _attention_weights(tile_q, all_k, keys, scale, QUERIES, KEYS)
    result = tl.dot(weights.to(all_v.dtype), all_v, input_precision="ieee")
    at = output + batch * o_b + head * o_h + row[:, None] * o_l + column[None, :]
    tl.store(at, result.to(output.dtype.element_ty), in_q)


@triton.jit
def _backward(
    q, k, v, grad_output, grad_q, partial_k, partial_v, q_b, q_h, q_l, k_b, k_h, k_l, v_b, v_h, v_l, g_b, g_h, g_l,
    t_b, t_h, t_l, heads, queries, keys, width, scale, tiles, NEEDS_KV: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient of a chunk of queries and, with NEEDS_KV, the chunk's part of the gradients of keys and values."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    key, column = tl.arange(0, KEYS), tl.arange(0, WIDTH)
    in_k = (key < keys)[:, None] & (column < width)[None, :]
    all_k = tl.load(k + batch * k_b + head * k_h + key[:, None] * k_l + column[None, :], in_k, 0.0)
    all_v = tl.load(v + batch * v_b + head * v_h + key[:, None] * v_l + column[None, :], in_k, 0.0)
    sum_k = tl.zeros((KEYS, WIDTH), tl.float32)
    sum_v = tl.zeros((KEYS, WIDTH), tl.float32)
    tile = tl.program_id(0) * tiles
    while tile < (tl.program_id(0) + 1) * tiles:
        row = tile * QUERIES + tl.arange(0, QUERIES)
        in_q = (row < queries)[:, None] & (column < width)[None, :]
        tile_q = tl.load(q + batch * q_b + head * q_h + row[:, None] * q_l + column[None, :], in_q, 0.0)
        g = tl.load(grad_output + batch * g_b + head * g_h + row[:, None] * g_l + column[None, :], in_q, 0.0)
        weights = _attention_weights(tile_q, all_k, keys, scale, QUERIES, KEYS)
        if NEEDS_KV:
            sum_v += tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision="ieee")
        grad_weights = tl.dot(g, tl.trans(all_v), input_precision="ieee")
        grad_scores = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None]) * scale
        grad_scores = grad_scores.to(tile_q.dtype)
        if NEEDS_KV:
            sum_k += tl.dot(tl.trans(grad_scores), tile_q, input_precision="ieee")
        result = tl.dot(grad_scores, all_k, input_precision="ieee")
        at = grad_q + batch * t_b + head * t_h + row[:, None] * t_l + column[None, :]
        tl.store(at, result.to(grad_q.dtype.element_ty), in_q)
        tile += 1
    if NEEDS_KV:
        place = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        at = place * keys * width + key[:, None] * width + column[None, :]
        tl.store(partial_k + at, sum_k, in_k)
        tl.store(partial_v + at, sum_v, in_k)


@triton.jit
def _sum_chunks(
    partial, grad_k, grad_v, t_b, t_h, t_l, heads, keys, width, chunks, CHUNKS: tl.constexpr, KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Sums the chunks' parts of the gradients of keys and values, in a fixed order."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    key, column = tl.program_id(0) * KEYS + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    in_k = (key < keys)[:, None] & (column < width)[None, :]
    first = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * chunks
    total = tl.zeros((KEYS, WIDTH), tl.float32)
    start = 0
    while start < chunks:
        chunk = start + tl.arange(0, CHUNKS)
        at = (first + chunk)[:, None, None] * keys * width + (key[:, None] * width + column[None, :])[None]
        in_q = (chunk < chunks)[:, None, None] & in_k[None]
        total += tl.sum(tl.load(partial + at, in_q, 0.0), 0)
        start += CHUNKS
    at = batch * t_b + head * t_h + key[:, None] * t_l + column[None, :]
    result = total.to(grad_k.dtype.element_ty)
    if tl.program_id(2) == 0:
        tl.store(grad_k + at, result, in_k)
    else:
        tl.store(grad_v + at, result, in_k)
