"""The device that a MODEL computes on, and the number formats and kernels it supports."""

import functools
from typing import Any

import comfy.model_management
import torch

from ..basics.memory import is_device_full
from .page import first_line


def training_device(model: Any) -> torch.device:
    """The device on which the MODEL computes."""
    return model.load_device


def training_dtype(model: Any, precision: str) -> torch.dtype:
    """The dtype in which the base model computes, for the config's precision."""
    if precision == "fp32":
        return torch.float32
    device = training_device(model)
    if precision == "fp16":
        return torch.float16
    return torch.bfloat16 if precision == "bf16" or has_bf16(device) else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether the host uses bf16 on a device: not where it is imitated, and not on the CPU."""
    return comfy.model_management.should_use_bf16(device)


def has_fp16(device: torch.device) -> bool:
    """Whether the host uses fp16 on a device: not on GTX 16 cards, which compute it wrongly, nor on older ones."""
    return comfy.model_management.should_use_fp16(device)


def takes_fp16(model: Any) -> bool:
    """Whether the host runs this kind of MODEL in fp16; some exceed its largest number, 65504."""
    return torch.float16 in model.model.model_config.supported_inference_dtypes


def make_room(device: torch.device) -> None:
    """Makes the host unload its models from a GPU; it loads them again when a node needs them."""
    if device.type != "cpu":
        comfy.model_management.free_memory(1e30, device)
        comfy.model_management.soft_empty_cache()


HALF = (torch.bfloat16, torch.float16)


def has_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels run on a device."""
    return not kernel_obstacle(device)


@functools.cache
def kernel_obstacle(device: torch.device) -> str:
    """Why the Triton kernels cannot run on a device, found by running one; empty if they can."""
    try:
        from ..kernels import geglu

        geglu(torch.zeros(1, 2, device=device))
    except Exception as error:  # Triton's compiler raises many kinds, and none may end a run
        if is_device_full(error):  # says nothing about later calls
            raise
        return first_line(error)
    return ""
