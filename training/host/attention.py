"""The fastest attention kernel with a backward pass."""

import functools
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .device import HALF, has_kernels
from .page import first_line, log

MOST_KEYS, MOST_HEADS = 128, 65535
"""Limits of the kernel for few keys: keys (and features) per head, and heads times samples (CUDA's grid size)."""
FEW_KEYS_CAPABILITY = (8, 0)
"""Least CUDA compute capability of that kernel. For older GPUs Triton compiles for minutes and exceeds their memory."""
FASTEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attention(_: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
    """Attention for the host's `optimized_attention_override`, by a kernel with a backward pass.

    cuDNN's kernel comes first: on an H100 forward and backward took 0.6 of flash attention's time (measured).
    Attention to few keys, such as a caption's, has its own kernel. Under deterministic algorithms, and for masks,
    grouped queries and other scales, the host's `attention_pytorch` is used.
    """
    mask = args[0] if args else kwargs.get("mask")
    is_plain = mask is None and not kwargs.get("enable_gqa") and kwargs.get("scale") is None
    if not (q.dtype in HALF and is_plain) or torch.are_deterministic_algorithms_enabled():
        return attention_pytorch(q, k, v, heads, *args, **kwargs)
    if not kwargs.get("skip_reshape"):  # some models have already split the heads of one of the three
        q, k, v = (each.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    if q.is_cuda and fits_few_keys(q, k, v) and runs_few_keys(q.device, q.dtype, k.shape[2], k.shape[3]):
        from ..kernels import cross_attention

        output = cross_attention(q, k, v)
    else:
        with sdpa_kernel(FASTEST_FIRST, set_priority=True):
            output = nn.functional.scaled_dot_product_attention(q, k, v)
    return output if kwargs.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)


def fits_few_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether `cross_attention` takes q (B, H, L, D), k and v (B, H, S, D): S at most L / 2, within its limits."""
    are_alike = q.dim() == k.dim() == 4 and k.shape == v.shape and q.dtype == k.dtype == v.dtype
    if not are_alike or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        return False
    keys, width = k.shape[2:]
    return 0 < 2 * keys <= q.shape[2] and max(keys, width) <= MOST_KEYS and q.shape[0] * q.shape[1] <= MOST_HEADS


@functools.cache
def runs_few_keys(device: torch.device, dtype: torch.dtype, keys: int, width: int) -> bool:
    """Whether `cross_attention` runs on a device; small GPUs may lack shared memory for it."""
    if not has_kernels(device):
        return False
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < FEW_KEYS_CAPABILITY:
        return False
    from ..kernels import try_cross_attention

    try:
        try_cross_attention(device, dtype, keys, width)
    except torch.OutOfMemoryError:  # says nothing about later calls
        raise
    except Exception as error:  # Triton's compiler raises many kinds; torch's attention always works
        log("Attention to captions goes by torch's own kernel, which is slower: %s", first_line(error))
        return False
    return True
