"""A bound on the memory that a run takes of a GPU whose driver would take RAM instead of refusing."""

import contextlib
import platform
import sys
from collections.abc import Iterator

import comfy.model_management
import torch

WDDM_RESERVE = 600 * 2**20
"""Bytes left to Windows and other programs at least. ComfyUI leaves as much under Windows, but less under WSL."""


def overflows() -> bool:
    """Whether memory that a GPU does not have is taken from RAM, which is many times slower, instead of refused.

    So do drivers under Windows (WDDM; NVIDIA's since 536.40), and under WSL, which uses them.
    """
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def reserve() -> float:
    """Bytes of the GPU that a run leaves free."""
    return max(comfy.model_management.extra_reserved_memory(), WDDM_RESERVE)


def fraction_of(used: int, free: int, total: int, reserved: float) -> float:
    """The share of a GPU's memory that this process may take.

    Args:
        used: bytes that PyTorch has taken of the GPU already.
        free: bytes that nobody has taken.
        total: bytes of the GPU.
        reserved: bytes that are to stay free.
    """
    return min(1.0, max(0.0, (used + free - reserved) / total))


@contextlib.contextmanager
def bounded_memory(device: torch.device) -> Iterator[None]:
    """Where GPU memory overflows into RAM, PyTorch raises `torch.OutOfMemoryError` in the context before it does.

    The native allocator counts what it has taken of the GPU, and gives back what it caches before it raises.
    cudaMallocAsync counts the tensors' bytes alone: not the gaps between them, nor the memory that recorded CUDA graphs
    take when they are replayed. Neither counts memory of other libraries and of other programs.

    On exit the bound is as before. Where there was none, cudaMallocAsync, and the native allocator of older versions of
    PyTorch, keep one at the GPU's whole memory, since PyTorch cannot take it off.
    """
    if device.type != "cuda" or not overflows():
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    fraction, before = fraction_of(torch.cuda.memory_reserved(device), free, total, reserve()), _fraction(device)
    torch.cuda.set_per_process_memory_fraction(min(fraction, before), device)
    try:
        yield
    finally:
        with contextlib.suppress(RuntimeError):  # after a CUDA error, which was raised where it occurred
            torch.cuda.set_per_process_memory_fraction(before, device)


def _fraction(device: torch.device) -> float:
    """The bound that is set; cudaMallocAsync tells a number far above 1 where none is."""
    if not hasattr(torch.cuda, "get_per_process_memory_fraction"):  # an older PyTorch
        return 1.0
    return min(1.0, torch.cuda.get_per_process_memory_fraction(device))
