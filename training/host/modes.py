"""The host's modes: training with autograd, and sampling as the host does it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import torch

from .rotation import fused_rotation


@contextlib.contextmanager
def training_mode() -> Iterator[None]:
    """Enables autograd and switches the host to kernels that have a backward pass; restores both on exit."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad(), fused_rotation(), _exact_sums():
            yield
    finally:
        comfy.model_management.in_training = before


@contextlib.contextmanager
def _exact_sums() -> Iterator[None]:
    """Sums fp16 matrix products in fp32, even if the host was started with --fast."""
    products: Any = torch.backends.cuda.matmul
    before = getattr(products, "allow_fp16_accumulation", False)
    if before:
        products.allow_fp16_accumulation = False
    try:
        yield
    finally:
        if before:
            products.allow_fp16_accumulation = before


@contextlib.contextmanager
def sampling_mode() -> Iterator[None]:
    """Inference as the host does it, also inside `training_mode`."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        comfy.model_management.in_training = before
