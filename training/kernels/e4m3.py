# pyright: reportArgumentType=false
"""Conversion to and from 8-bit floats (e4m3: Micikevicius et al., arXiv:2209.05433)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch

ELEMENTS, SIDE, BLOCK = 1024, 64, 4096
"""elements per program of `from_e4m3`, side of a tile of `transposed`, most columns per read of `rows_to_e4m3`"""
LARGEST = 448.0
"""the largest e4m3 number"""
SMALLEST = 2.0**-100
"""lower bound of a row's largest magnitude, against division by zero"""


def from_e4m3(numbers: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """e4m3 numbers in another dtype, times their scale; for GPUs without hardware support of e4m3 too.

    Args:
        numbers: (rows, columns) float8_e4m3fn, contiguous.
        scale: (rows, 1) float32; None = 1.

    Returns:
        (rows, columns) of `dtype`.
    """
    rows, columns = numbers.shape
    output = torch.empty(rows, columns, device=numbers.device, dtype=dtype)
    launch(
        _from_e4m3,
        (rows, triton.cdiv(columns, ELEMENTS)),
        **dict(numbers=numbers.view(torch.uint8), scale=output if scale is None else scale, output=output),
        **dict(columns=columns, SCALED=scale is not None, ELEMENTS=ELEMENTS),
    )
    return output


def rows_to_e4m3(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantises each row to e4m3 with a scale of its own, which maps the row's largest magnitude to 448.

    Args:
        x: (rows, columns), contiguous.
        factors: (columns,) float32, multiplied into x first; None = 1.

    Returns:
        (rows, columns) float8_e4m3fn and scales (rows, 1) float32, whose product approximates x. A row with a number
        that is not finite has an infinite scale, so that the product is not finite either.
    """
    rows, columns = x.shape
    numbers = torch.empty(rows, columns, device=x.device, dtype=torch.float8_e4m3fn)
    scale = torch.empty(rows, 1, device=x.device, dtype=torch.float32)
    launch(
        _rows_to_e4m3,
        (rows,),
        **dict(x=x, factors=scale if factors is None else factors, numbers=numbers.view(torch.uint8), scale=scale),
        **dict(COLUMNS=columns, FACTORS=factors is not None, LARGEST=LARGEST, SMALLEST=SMALLEST),
        BLOCK=min(BLOCK, triton.next_power_of_2(columns)),
    )
    return numbers, scale


def transposed(numbers: Tensor) -> Tensor:
    """A contiguous (rows, columns) of one-byte numbers -> its transpose, contiguous."""
    rows, columns = numbers.shape
    output = torch.empty(columns, rows, device=numbers.device, dtype=numbers.dtype)
    launch(
        _transposed,
        (triton.cdiv(rows, SIDE), triton.cdiv(columns, SIDE)),
        **dict(numbers=numbers.view(torch.uint8), output=output.view(torch.uint8)),
        **dict(rows=rows, columns=columns, SIDE=SIDE),
    )
    return output


@triton.jit
def _from_e4m3(numbers, scale, output, columns, SCALED: tl.constexpr, ELEMENTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = column < columns
    code = tl.load(numbers + row * columns + column, inside, 0).to(tl.int32)
    # As bits of a float32, sign, exponent (4 bits) and mantissa (3 bits) give the value times 2^-120, subnormals too.
    bits = ((code & 0x80) << 24) | ((code & 0x7F) << 20)
    value = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36
    value = tl.where((code & 0x7F) == 0x7F, float("nan"), value)
    if SCALED:
        value *= tl.load(scale + row)
    tl.store(output + row * columns + column, value.to(output.dtype.element_ty), inside)


@triton.jit
def _rows_to_e4m3(
    x, factors, numbers, scale, COLUMNS: tl.constexpr, FACTORS: tl.constexpr, LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * COLUMNS + column, column < COLUMNS, 0.0).to(tl.float32)
        if FACTORS:
            value *= tl.load(factors + column, column < COLUMNS, 0.0)
        largest = tl.maximum(largest, tl.where(value == value, tl.abs(value), float("inf")))
    row_scale = tl.maximum(tl.max(largest, 0), SMALLEST) / LARGEST
    tl.store(scale + row, row_scale)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * COLUMNS + column, column < COLUMNS, 0.0).to(tl.float32)
        if FACTORS:
            value *= tl.load(factors + column, column < COLUMNS, 0.0)
        value = tl.minimum(tl.maximum(value / row_scale, -LARGEST), LARGEST) * 7.52316384526264e-37  # 2^-120, see above
        bits = value.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        magnitude = (magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20  # to the nearest, ties to even
        code = ((bits >> 24) & 0x80) | magnitude
        tl.store(numbers + row * COLUMNS + column, code.to(tl.uint8), column < COLUMNS)


@triton.jit
def _transposed(numbers, output, rows, columns, SIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(1).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(numbers + row[:, None] * columns + column[None, :], inside, 0)
    inside = (column < columns)[:, None] & (row < rows)[None, :]
    tl.store(output + column[:, None] * rows + row[None, :], tl.trans(tile), inside)
