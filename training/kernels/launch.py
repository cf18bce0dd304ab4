"""How a kernel is launched."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Pointer(int):
    """A tensor's place as Triton takes it, without a look at whose memory it is.

    While a CUDA graph is recorded under cudaMallocAsync memory has an address and nothing behind it yet, and Triton
    would refuse it. Launchers take integers as they are, and what they stand for from `data_ptr` and `dtype`.
    """

    dtype: torch.dtype

    def __new__(cls, tensor: Tensor) -> "_Pointer":
        pointer = int.__new__(cls, tensor.data_ptr())
        pointer.dtype = tensor.dtype
        return pointer

    def data_ptr(self) -> int:
        return int(self)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: int) -> None:
    """Runs a kernel; tensors among the arguments are handed over as addresses.

    Args:
        options: Triton's own, such as num_warps.
    """
    is_cuda = isinstance(arguments[0], Tensor) and arguments[0].is_cuda
    given = (_Pointer(each) if is_cuda and isinstance(each, Tensor) else each for each in arguments)
    kernel[grid](*given, **options)


def last_dense(x: Tensor) -> Tensor:
    """x with its last dimension dense; a copy only where it is not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def padded(numbers: Sequence[int], value: int) -> list[int]:
    """Three numbers: lengths or strides of the dimensions before the last, those that lack in front."""
    return [*[value] * (3 - len(numbers)), *numbers]
