"""Rotary position embedding as one kernel with a backward pass, in place of the host's function."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import comfy.ldm.flux.math
import torch

from .device import HALF, has_kernels


@contextlib.contextmanager
def fused_rotation() -> Iterator[None]:
    """Replaces the host's rotary embedding, which Flux shares with many models, while the context lasts.

    It is a plain function, called by many modules, so it is replaced in its module and restored on exit.
    """
    module = comfy.ldm.flux.math
    original = getattr(module, "_apply_rope1", None)
    if original is None:
        yield
        return
    module._apply_rope1 = functools.partial(_rotate, original)
    try:
        yield
    finally:
        module._apply_rope1 = original


def _rotate(original: Any, x: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """x (B, H, L, D) with each pair of features rotated, by the kernel if it takes these tensors, else by `original`.

    Args:
        rotations: (B or 1, H or 1, L or 1, D / 2, 2, 2) float32 rotation matrices.
    """
    has_usual_types = x.is_cuda and x.dtype in HALF and rotations.dtype == torch.float32
    if not (has_usual_types and not rotations.requires_grad and fits_rotation(x.shape, rotations.shape)):
        return original(x, rotations)
    if not has_kernels(x.device):
        return original(x, rotations)
    from ..kernels import rotate

    return rotate(x, rotations if 1 in (x.shape[2], rotations.shape[2]) else rotations[:, :, : x.shape[2]])


def fits_rotation(x: Sequence[int], rotations: Sequence[int]) -> bool:
    """Whether the kernel takes tensors of these shapes; a dimension of 1 in `rotations` is broadcast."""
    if (len(x), len(rotations)) != (4, 6) or rotations[3] * 2 != x[3]:
        return False
    length = rotations[2] if rotations[2] > x[2] > 1 else x[2]  # the host cuts off rotations beyond x's length
    return rotations[0] in (1, x[0]) and rotations[1] in (1, x[1]) and rotations[2] in (1, length)
