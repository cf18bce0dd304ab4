"""The device that a MODEL computes on, and what it can do."""

import functools
from typing import Any

import comfy.model_management
import torch


def training_device(model: Any) -> torch.device:
    """Where the MODEL computes."""
    return model.load_device


def training_dtype(model: Any, precision: str) -> torch.dtype:
    """The base model's arithmetic for a precision of the config."""
    if precision == "fp32":
        return torch.float32
    device = training_device(model)
    if precision == "fp16":
        return torch.float16
    return torch.bfloat16 if precision == "bf16" or has_bf16(device) else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether a device is a GPU that computes bf16 itself."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def has_fp16(device: torch.device) -> bool:
    """Whether the host trusts a device with fp16: not GTX 16, which computes it wrong, nor older ones."""
    return comfy.model_management.should_use_fp16(device)


def takes_fp16(model: Any) -> bool:
    """Whether the host runs such a MODEL in fp16, which holds no number above 65504."""
    return torch.float16 in model.model.model_config.supported_inference_dtypes


def make_room(device: torch.device) -> None:
    """Lets the host unload its models from a GPU; they come back when a node needs them."""
    if device.type != "cpu":
        comfy.model_management.free_memory(1e30, device)
        comfy.model_management.soft_empty_cache()


HALF = (torch.bfloat16, torch.float16)


def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device."""
    return not kernel_obstacle(device)


@functools.cache
def kernel_obstacle(device: torch.device) -> str:
    """Why Triton's kernels cannot run here; empty where one did."""
    try:
        from ..kernels import geglu

        geglu(torch.zeros(1, 2, device=device))
    except torch.OutOfMemoryError:  # of now, and no reason for later
        raise
    except Exception as error:  # Triton's compiler has errors of many kinds, and none of them may end a run
        return first_line(error)
    return ""


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
