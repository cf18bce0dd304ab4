"""Many small tensors in few large blocks of memory.

Small tensors that live long, allocated among short-lived ones, fragment the heap: 20,000 latents of 1 KiB, read one by
one between the batches of a run, took 5 GB of memory (measured).
"""

from typing import Any

import torch
from torch import Tensor

from ..basics.pytree import map_tensors

SLAB = 64 * 2**20
"""bytes; large enough that allocators map the block separately, and the system provides only the pages written to"""
ALIGNMENT = 64
"""bytes"""


class Slabs:
    """Copies tensors into slabs. A slab is freed with the last tensor in it."""

    def __init__(self) -> None:
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def copy(self, tree: Any) -> Any:
        """The tree with its tensors copied into slabs, on the CPU; those above a quarter of a slab are shared."""
        with torch.inference_mode(False), torch.no_grad():
            return map_tensors(self._copy, tree)

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.nbytes > SLAB // 4:
            return tensor
        if self._used + tensor.nbytes > len(self._slab):
            self._slab = torch.empty(SLAB, dtype=torch.uint8)
            self._used = 0
        copy = self._slab[self._used : self._used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._used += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return copy.copy_(tensor)
