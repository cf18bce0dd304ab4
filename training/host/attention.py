"""The fastest attention kernel with a backward pass that works on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..basics.backends import AMD, backend_of
from ..basics.memory import is_device_full
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

    cuDNN's kernel comes first: on an H100 forward and backward took 0.6 of flash attention's time (measured). Elsewhere
    it may fail for some shapes: forward and backward are tried once for each, before the first use.
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
    elif q.is_cuda:
        with sdpa_kernel(_backends(q, k, v), set_priority=True):
            output = nn.functional.scaled_dot_product_attention(q, k, v)
    else:  # torch has another order of backends there
        output = nn.functional.scaled_dot_product_attention(q, k, v)
    return output if kwargs.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)


def working(
    backends: Sequence[SDPBackend], trial: Callable[[Sequence[SDPBackend]], None], say: Callable[[str], None]
) -> list[SDPBackend]:
    """The backends from the first on with which the trial goes through; the last is taken without one.

    Args:
        backends: the fastest first.
        trial: computes forward and backward with the first of some backends that torch holds able to.
        say: called with a sentence for each that is left out.
    """
    for index, backend in enumerate(backends[:-1]):
        try:
            trial(backends[index:])
        except RuntimeError as error:
            if is_device_full(error):  # says nothing about later calls
                raise
            name = backend.name.lower().replace("_", " ")
            say(f"Attention goes without {name} for some shapes, which is slower: {first_line(error)}")
        else:
            return list(backends[index:])
    return list(backends[-1:])


def _backends(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> list[SDPBackend]:
    """The backends for tensors of these shapes; all, untried, where there is no room or time for a trial."""
    key = q.device, q.dtype, *(each.shape[-2:] for each in (q, k, v))
    if key not in _known and not torch.cuda.is_current_stream_capturing():
        try:
            _known[key] = working(FASTEST_FIRST, functools.partial(_try_backends, q, k, v), _say_once)
        except RuntimeError as error:
            if not is_device_full(error):
                raise
            return FASTEST_FIRST
    return _known.get(key, FASTEST_FIRST)


_known: dict[tuple[Any, ...], list[SDPBackend]] = {}
"""The backends that work, by what decides it: device, dtype, and (length, features) of q, k and v."""
_say_once = functools.cache(lambda sentence: log("%s", sentence))


def _try_backends(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backends: Sequence[SDPBackend]) -> None:
    """Forward and backward for tensors such as these, of one sample and two heads: that takes little memory.

    No random number is drawn, and nothing that watches the surrounding pass sees it.

    Raises:
        RuntimeError: the first backend that torch holds able to compute it does not.
    """
    nothing = torch.autograd.graph.saved_tensors_hooks(lambda each: each, lambda each: each)
    with torch.inference_mode(False), torch.enable_grad(), nothing, sdpa_kernel(list(backends), set_priority=True):
        inputs = [
            torch.zeros(1, each.shape[-2], 2, each.shape[-1], dtype=each.dtype, device=each.device, requires_grad=True)
            for each in (q, k, v)
        ]
        query, key, value = (each.transpose(1, 2) for each in inputs)
        output = nn.functional.scaled_dot_product_attention(query, key, value)
        torch.autograd.grad(output, inputs, torch.zeros_like(output))


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
    if backend_of(device) is not AMD and torch.cuda.get_device_capability(device) < FEW_KEYS_CAPABILITY:
        return False
    from ..kernels import try_cross_attention

    try:
        try_cross_attention(device, dtype, keys, width)
    except Exception as error:  # Triton's compiler raises many kinds; torch's attention always works
        if is_device_full(error):  # says nothing about later calls
            raise
        log("Attention to captions goes by torch's own kernel, which is slower: %s", first_line(error))
        return False
    return True
