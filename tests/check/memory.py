"""RAM and GPU memory: how much there is, who hands it out, whether a bound on it holds."""

from __future__ import annotations

import time
from typing import Any

from check.ground import Ground
from check.outcome import FailedError, NotThereError

MEGABYTE = 2**20
ALLOWED, ASKED = 256 * MEGABYTE, 512 * MEGABYTE
"""bytes that the bound leaves, and bytes that are asked for under it"""
PINNED = 64 * MEGABYTE


def ram(ground: Ground) -> str:
    import torch

    return _free_of_total(torch.device("cpu"))


def gpu_memory(ground: Ground) -> str:
    return _free_of_total(_gpu(ground))


def allocator(ground: Ground) -> str:
    import torch

    if _gpu(ground).type != "cuda":
        raise NotThereError("a choice of CUDA alone")
    return torch.cuda.get_allocator_backend()


def fraction(ground: Ground) -> str:
    """Whether torch refuses memory beyond a fraction of the GPU's; without that, Windows takes RAM in its place."""
    import torch

    device = _gpu(ground)
    module: Any = getattr(torch, device.type, None)
    if device.type == "mps" or not hasattr(module, "set_per_process_memory_fraction"):
        raise NotThereError("torch has none for this device that can be put back")
    total = module.get_device_properties(device).total_memory
    module.empty_cache()
    module.set_per_process_memory_fraction(min(1.0, (module.memory_allocated(device) + ALLOWED) / total), device)
    try:
        torch.ones(ASKED, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        pass
    else:
        raise FailedError(f"{ASKED // MEGABYTE} MB were given where {ALLOWED // MEGABYTE} MB are allowed")
    finally:
        module.set_per_process_memory_fraction(1.0, device)
    torch.ones(ASKED, dtype=torch.uint8, device=device)
    return f"{ASKED // MEGABYTE} MB were refused where {ALLOWED // MEGABYTE} MB were allowed, and given afterwards"


def pinned(ground: Ground) -> str:
    """Pinned RAM, from which weights are copied to the GPU while it computes."""
    import torch

    device = _gpu(ground)
    if device.type not in ("cuda", "xpu"):
        raise NotThereError("for CUDA, ROCm and XPU alone")
    try:
        block = torch.ones(PINNED, dtype=torch.uint8).pin_memory()
    except RuntimeError as error:
        raise NotThereError(f"refused: {str(error).splitlines()[0]}") from error
    module: Any = getattr(torch, device.type)
    block.to(device, non_blocking=True)
    module.synchronize(device)
    started = time.perf_counter()
    there = block.to(device, non_blocking=True)
    module.synchronize(device)
    seconds = time.perf_counter() - started
    if not bool((there == 1).all()):
        raise FailedError("what was copied from it is not what it held")
    return f"{PINNED // MEGABYTE} MB, copied with {PINNED / seconds / 1e9:.0f} GB/s"


def _gpu(ground: Ground) -> Any:
    if ground.device.type == "cpu":
        raise NotThereError("no GPU")
    return ground.device


def _free_of_total(device: Any) -> str:
    """As ComfyUI counts."""
    import comfy.model_management as management

    free, total = management.get_free_memory(device), management.get_total_memory(device)
    return f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
