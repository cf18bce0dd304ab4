"""The products of a frozen layer's weight, which depend on the format that the weight is stored in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class LayerProducts:
    """Functions that multiply by a frozen weight, for layers whose LoRA is computed with them as one operation.

    Whoever attaches adapters to layers with weights in another format hands in functions that know it.
    """

    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """(x (..., in), weight (out, in), bias (out,) or None) -> x W^T + b (..., out)"""
    linear_backward: Callable[[Tensor, Tensor], Tensor]
    """(gradient (..., out), weight (out, in)) -> gradient W (..., in)"""
    is_quantised: Callable[[Tensor], bool]
    """whether a weight is stored in another number format than it is multiplied in"""
    is_plain: Callable[[Any], bool]
    """whether a layer's output is its weight's product with the input, plus its bias, and nothing else"""


def _is_torchs_own(layer: Any) -> bool:
    return type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) and "forward" not in vars(layer)


PLAIN = LayerProducts(
    linear=F.linear, linear_backward=torch.matmul, is_quantised=lambda weight: False, is_plain=_is_torchs_own
)
"""For torch's own layers with ordinary tensors."""
