"""Tensors of the host as normal tensors."""

from typing import Any

import torch
from torch.utils._pytree import tree_map_only


def normal_cpu_copy(value: Any) -> Any:
    """Copies every tensor in nested lists, tuples and dicts to the CPU.

    The host computes in inference mode; its tensors cannot be saved for a backward pass, the copies can.
    """
    with torch.inference_mode(False):
        return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), value)
