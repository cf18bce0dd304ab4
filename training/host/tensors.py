"""Tensors of the host and of other packs as normal tensors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The number formats in which the host computes."""


def normal_cpu_copy(value: Any) -> Any:
    """Copies every tensor in nested lists, tuples and dicts to the CPU.

    The host computes in inference mode; its tensors cannot be saved for a backward pass, the copies can.
    """
    with torch.inference_mode(False):
        return tree_map_only(Tensor, lambda tensor: plain(tensor).detach().to("cpu", copy=True), value)


def is_foreign(tensor: Tensor) -> bool:
    """Whether a tensor is of another pack's class, which may copy, convert and describe itself in its own way.

    The host's quantised tensors are not foreign.
    """
    return type(tensor) not in (Tensor, nn.Parameter) and not is_traceable_wrapper_subclass(tensor)


def plain(tensor: Tensor) -> Tensor:
    """A foreign tensor's memory, numbers or packed bytes, as an ordinary tensor; other tensors as they are."""
    if not is_foreign(tensor):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def is_packed(tensor: Tensor) -> bool:
    """Whether a foreign tensor's memory holds anything but the numbers of its shape: only its pack can read it."""
    memory = plain(tensor)
    return is_foreign(tensor) and (memory.dtype not in FLOATS or tuple(memory.shape) != tuple(tensor.shape))


def base_weight(patcher: Any, key: str, weight: Tensor) -> Tensor:
    """The weight under a state-dict key without what was put on it for the patcher or a clone, which share it."""
    if key in patcher.backup:
        return patcher.backup[key].weight
    return patcher.hook_backup[key][0] if key in patcher.hook_backup else weight
