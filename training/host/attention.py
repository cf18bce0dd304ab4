"""The quickest attention that has a backward pass."""

import functools
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .device import HALF, first_line, has_kernels
from .page import say

MOST_KEYS, MOST_PAIRS = 128, 65535
"""of the attention to few keys: keys and width of a head, and heads of all samples, as CUDA's grids allow"""
FEW_KEYS_SINCE = (8, 0)
"""compute capability; for older NVIDIA GPUs Triton compiles that attention for minutes, into what does not fit"""
QUICKEST_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attention(_: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *args: Any, **kwargs: Any) -> Any:
    """The host's attention by a kernel with a backward pass; takes what `optimized_attention_override` is called with.

    cuDNN's goes first: on an H100 it took 0.6 of flash attention's time, there and back (measured). Attention to few
    keys, as those of a caption, has a kernel of its own. Where results must be the same bits each time, the host's
    own choice stays.
    """
    mask = args[0] if args else kwargs.get("mask")
    is_plain = mask is None and not kwargs.get("enable_gqa") and kwargs.get("scale") is None
    if not (q.dtype in HALF and is_plain) or torch.are_deterministic_algorithms_enabled():
        return attention_pytorch(q, k, v, heads, *args, **kwargs)
    if not kwargs.get("skip_reshape"):  # some models have split the heads of one of the three already
        q, k, v = (each.flatten(2).unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    if q.is_cuda and fits_few_keys(q, k, v) and runs_few_keys(q.device, q.dtype, k.shape[2], k.shape[3]):
        from ..kernels import cross_attention

        output = cross_attention(q, k, v)
    else:
        with sdpa_kernel(QUICKEST_FIRST, set_priority=True):
            output = nn.functional.scaled_dot_product_attention(q, k, v)
    return output if kwargs.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)


def fits_few_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Whether `cross_attention` takes them, (B, H, L, D) and twice (B, H, S, D): many queries and few keys."""
    are_alike = q.dim() == k.dim() == 4 and k.shape == v.shape and q.dtype == k.dtype == v.dtype
    if not are_alike or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        return False
    keys, width = k.shape[2:]
    return 0 < 2 * keys <= q.shape[2] and max(keys, width) <= MOST_KEYS and q.shape[0] * q.shape[1] <= MOST_PAIRS


@functools.cache
def runs_few_keys(device: torch.device, dtype: torch.dtype, keys: int, width: int) -> bool:
    """Whether `cross_attention` runs on a device: on smaller ones a program may not hold so much."""
    if not has_kernels(device):
        return False
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < FEW_KEYS_SINCE:
        return False
    from ..kernels import try_cross_attention

    try:
        try_cross_attention(device, dtype, keys, width)
    except torch.OutOfMemoryError:  # of now, and no reason for later
        raise
    except Exception as error:  # Triton's compiler has errors of many kinds; torch's attention takes it all
        say("Attention to captions goes by torch's own kernel, which is slower: %s", first_line(error))
        return False
    return True
