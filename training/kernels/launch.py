"""Launching Triton kernels."""

from collections.abc import Sequence
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
    kernel[grid](**{name: _address(value) for name, value in arguments.items()})


def _address(value: Any) -> Any:
    return _Pointer(value) if isinstance(value, Tensor) and value.is_cuda else value


def last_dense(x: Tensor) -> Tensor:
    """x if its last dimension has stride 1, else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def padded(numbers: Sequence[int], value: int) -> list[int]:
    """Lengths or strides of at most three dimensions, padded in front with `value` to three."""
    return [*[value] * (3 - len(numbers)), *numbers]


def numbered(**sequences: Sequence[int]) -> dict[str, int]:
    """x=(2, 1) -> {"x_0": 2, "x_1": 1}, as kernels name their strides."""
    return {f"{name}_{axis}": value for name, values in sequences.items() for axis, value in enumerate(values)}
