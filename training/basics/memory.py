"""Errors that say that memory is full, in the words of every device that PyTorch computes on."""

import errno
import re

import torch

DEVICE = re.compile(
    r"out of memory|Invalid buffer size|not enough GPU video memory|UR_RESULT_ERROR_OUT_OF_(DEVICE_MEMORY|RESOURCES)"
    r"|_STATUS_(\w*_)?ALLOC(ATION)?_FAILED|rocblas_status_memory_error",
    re.IGNORECASE,
)
"""CUDA, HIP, MPS, XPU and others; one MPS buffer too large; DirectML; Intel's runtime; cuBLAS and cuDNN; rocBLAS."""
RAM = re.compile(
    r"can't allocate memory|not enough memory: you tried to allocate|Cannot allocate memory|OUT_OF_HOST_MEMORY"
    r"|os error 1455"
)
"""PyTorch on Linux; on Windows; the system on Linux; Intel's runtime; Windows, whose paging file is too small."""
PAGING_FILE_TOO_SMALL = 1455
"""Windows' error number"""


def is_device_full(error: BaseException) -> bool:
    """Whether an error says that a device's memory is full.

    Only the allocators of CUDA and of newer XPU raise `torch.OutOfMemoryError`. Other devices, libraries such as
    cuBLAS, and CUDA itself raise a RuntimeError that says so in words.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and not is_ram_full(error) and bool(DEVICE.search(str(error)))


def is_ram_full(error: BaseException) -> bool:
    """Whether an error says that the computer's memory is full."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or getattr(error, "winerror", None) == PAGING_FILE_TOO_SMALL
    return not isinstance(error, ValueError) and bool(RAM.search(str(error)))  # ours quote words of others


def is_memory_full(error: BaseException) -> bool:
    """Whether an error says that the memory of a device or of the computer is full."""
    return is_device_full(error) or is_ram_full(error)
