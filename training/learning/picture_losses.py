"""Which pictures hurt: each picture's loss against that of all pictures at the same noise level."""

import torch
from torch import Tensor

from .objective import Family

LEVELS = 16
"""noise levels that are told apart; the loss differs between them by orders of magnitude, between pictures by little"""


class PictureLosses:
    """Sums of losses by picture and noise level, on the device, so that adding costs no waiting.

    Args:
        pictures: how many there are.
    """

    def __init__(self, pictures: int, device: torch.device):
        self.sums = torch.zeros(pictures * LEVELS, device=device)
        """(pictures * LEVELS,)"""
        self.counts = torch.zeros_like(self.sums)

    def add(self, cells: Tensor, losses: Tensor) -> None:
        """Takes the losses of a batch.

        Args:
            cells: (B,) int64, from `cell_of`.
            losses: (B,) each sample's, its own weight left out.
        """
        losses = losses.detach().float().nan_to_num()
        self.sums.index_add_(0, cells, losses)
        self.counts.index_add_(0, cells, torch.ones_like(losses))

    def relative(self) -> list[tuple[float | None, int]]:
        """(loss, times seen) of each picture; 1 is the average of all at the same noise levels, None: not seen yet."""
        sums, counts = (each.double().cpu().reshape(-1, LEVELS) for each in (self.sums, self.counts))
        usual = sums.sum(0) / counts.sum(0).clamp(min=1.0)
        expected = (counts * usual).sum(1)
        seen = counts.sum(1)
        return [
            (sums[index].sum().item() / expected[index].item() if expected[index] > 0 else None, int(seen[index]))
            for index in range(len(seen))
        ]


def cell_of(family: Family, picture: int, sigma: float) -> int:
    """Where a picture's loss at a noise level is added up."""
    if family.prediction == "flow":
        time = sigma
    else:
        time = int(torch.searchsorted(family.sigmas, sigma)) / len(family.sigmas)
    return picture * LEVELS + min(LEVELS - 1, max(0, int(time * LEVELS)))
