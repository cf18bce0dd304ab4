"""Many small tensors in few large pieces of memory.

What is kept for long lies between what comes and goes in the allocator's memory, and leaves gaps there that nothing
larger fits: 20,000 latents of 1 KiB, read one by one beside the batches of a run, took 5 GB that way (measured).
"""

from typing import Any

import torch
from torch import Tensor

from ..basics.pytree import map_tensors

SLAB = 64 * 2**20
"""bytes; more than what allocators take from a heap. Only what is written to takes memory."""
ALIGNMENT = 64
"""bytes"""


class Slabs:
    """Copies tensors into slabs. A slab goes when the last tensor in it does."""

    def __init__(self) -> None:
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def settled(self, value: Any) -> Any:
        """The value with copies of its tensors, on the CPU, that lie in slabs; very large ones stay as they are."""
        with torch.inference_mode(False), torch.no_grad():
            return map_tensors(self._copied, value)

    def _copied(self, tensor: Tensor) -> Tensor:
        if tensor.nbytes > SLAB // 4:
            return tensor
        if self._used + tensor.nbytes > len(self._slab):
            self._slab = torch.empty(SLAB, dtype=torch.uint8)
            self._used = 0
        place = self._slab[self._used : self._used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._used += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        return place.copy_(tensor)
