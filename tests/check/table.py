"""All checks, in the order of the report."""

from __future__ import annotations

from check import arithmetic, disk, locks, memory, training, versions
from check.outcome import Check

CHECKS = (
    Check("versions", "system", versions.system),
    Check("versions", "Python", versions.python),
    Check("versions", "torch", versions.torch_version),
    Check("versions", "packages", versions.packages),
    Check("versions", "LoRA Kiln", versions.pack),
    Check("versions", "ComfyUI", versions.comfyui),
    Check("versions", "GPU", versions.gpu),
    Check("versions", "driver", versions.driver),
    Check("disk", "free space", disk.free_space),
    Check("disk", "write and sync", disk.write),
    Check("disk", "replace while it is read", disk.replace),
    Check("disk", "delete of a mapped file", disk.delete_mapped),
    Check("disk", "delete of a LoRA in use", disk.delete_read),
    Check("disk", "longest path", disk.long_path),
    Check("disk", "names that differ little", disk.case_rule),
    Check("disk", "names in other letters", disk.other_letters),
    Check("disk", "synced folder", disk.synced_folder),
    Check("locks", "two processes", locks.two_processes),
    Check("memory", "RAM", memory.ram),
    Check("memory", "GPU memory", memory.gpu_memory),
    Check("memory", "allocator", memory.allocator),
    Check("memory", "a bound holds", memory.fraction),
    Check("memory", "pinned", memory.pinned),
    Check("precision", "auto", arithmetic.trained_in),
    Check("precision", "float32", arithmetic.products("float32")),
    Check("precision", "bf16", arithmetic.products("bfloat16")),
    Check("precision", "fp16", arithmetic.products("float16")),
    Check("precision", "fp8", arithmetic.float8),
    Check("precision", "float64", arithmetic.products("float64")),
    Check("attention", "cuDNN", arithmetic.torch_attention("CUDNN_ATTENTION")),
    Check("attention", "flash", arithmetic.torch_attention("FLASH_ATTENTION")),
    Check("attention", "memory efficient", arithmetic.torch_attention("EFFICIENT_ATTENTION")),
    Check("attention", "math", arithmetic.torch_attention("MATH")),
    Check("attention", "the pack's choice", arithmetic.own_attention),
    Check("kernels", "Triton", arithmetic.triton),
    Check("kernels", "as torch computes", arithmetic.own_kernels),
    Check("run", "a whole run", training.whole),
    Check("run", "stopped and gone on", training.stopped),
)
