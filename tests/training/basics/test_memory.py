"""Full memory is known in the words of every device."""

from __future__ import annotations

import errno

import pytest
import torch
from lora_kiln.training.basics.memory import is_device_full, is_ram_full

DEVICE = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)"),
    *map(
        RuntimeError,
        [
            "MPS backend out of memory (MPS allocated: 17.83 GB, other allocations: 320.00 KB, max allowed: 18.13 GB).",
            "Invalid buffer size: 24.00 GiB",
            "XPU out of memory. Tried to allocate 64.00 GiB. GPU 0 has a total capacity of 64.00 GiB.",
            "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
            "UR backend failed. UR backend returns:40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)",
            "Could not allocate tensor with 4915840 bytes. There is not enough GPU video memory available!",
            "HIP out of memory. Tried to allocate 20.00 MiB.",
            "HIP error: out of memory",
            "CUDA error: out of memory",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
            "NPU out of memory. Tried to allocate 20.00 MiB.",
        ],
    ),
]
RAM = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    *map(
        RuntimeError,
        [
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 1125899906842624 bytes. Error code 12 (Cannot allocate memory)",
            "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate "
            "1125899906842624 bytes.",
            "unable to mmap 8589934592 bytes from file <model.safetensors>: Cannot allocate memory (12)",
            "level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)",
            "The paging file is too small for this operation to complete. (os error 1455)",
        ],
    ),
]
OTHER = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376."),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"),
    ValueError("the trigger word is 'out of memory'"),
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
]


@pytest.mark.parametrize("error", DEVICE, ids=str)
def test_a_devices_full_memory_is_known_by_its_words(error: Exception) -> None:
    assert is_device_full(error) and not is_ram_full(error)


@pytest.mark.parametrize("error", RAM, ids=str)
def test_full_ram_is_known_by_its_words(error: Exception) -> None:
    assert is_ram_full(error) and not is_device_full(error)


def test_a_paging_file_that_is_too_small_is_full_ram() -> None:
    error = OSError("The paging file is too small for this operation to complete")
    error.winerror = 1455  # pyright: ignore[reportAttributeAccessIssue]
    assert is_ram_full(error)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_are_not_about_full_memory(error: Exception) -> None:
    assert not is_ram_full(error) and not is_device_full(error)
