"""Launching Triton kernels."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


class _Pointer(int):
    """A tensor's address, which Triton does not check.

    While a CUDA graph is captured under cudaMallocAsync, an address is not backed by memory yet, and Triton's check of
    tensors fails. Its launchers pass integers on unchecked; `data_ptr` and `dtype` mark them as pointers.
    """

    dtype: torch.dtype

    def __new__(cls, tensor: Tensor) -> "_Pointer":
        pointer = int.__new__(cls, tensor.data_ptr())
        pointer.dtype = tensor.dtype
        return pointer

    def data_ptr(self) -> int:
        return int(self)


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Runs a kernel; CUDA tensors are passed as addresses.

    Args:
        arguments: the kernel's, and options of Triton's such as num_warps.
    """
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.is_cuda:
            arguments[name] = _Pointer(value)
    kernel[grid](**arguments)


def last_dense(x: Tensor) -> Tensor:
    """x if its last dimension has stride 1, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def padded(numbers: Sequence[int], value: int) -> list[int]:
    """Lengths or strides of at most three dimensions, padded in front with `value` to three."""
    return [*[value] * (3 - len(numbers)), *numbers]


def named_by_axis(axes: str, **sequences: Sequence[int]) -> dict[str, int]:
    """("bc", x=(2, 1)) -> {"x_b": 2, "x_c": 1}, as kernels name their strides."""
    arguments: dict[str, int] = {}
    for name, values in sequences.items():
        arguments.update(zip(_argument_names(name, axes), values, strict=True))
    return arguments


@cache
def _argument_names(name: str, axes: str) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for axis in axes)
