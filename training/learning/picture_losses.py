"""Which pictures are hard to learn: each picture's loss relative to that of all pictures at the same noise levels."""

import torch
from torch import Tensor

from .prediction import Prediction

LEVELS = 16
"""Ranges of noise levels: the loss differs between levels by orders of magnitude, between pictures by little."""


class PictureLosses:
    """Sums of losses in bins of picture and noise level, on the device, so that adding never waits for it.

    Args:
        pictures: number of pictures.
    """

    def __init__(self, pictures: int, device: torch.device):
        self.sums = torch.zeros(pictures * LEVELS, device=device)
        """(pictures * LEVELS,)"""
        self.counts = torch.zeros_like(self.sums)

    def add(self, bins: Tensor, losses: Tensor) -> None:
        """Adds the losses of a batch.

        Args:
            bins: (B,) int64, from `bins_of`.
            losses: (B,) without the samples' own weights.
        """
        losses = losses.detach().float().nan_to_num()
        self.sums.index_add_(0, bins, losses)
        self.counts.index_add_(0, bins, torch.ones_like(losses))

    def relative(self) -> list[tuple[float | None, int]]:
        """(loss, times seen) of each picture; 1 is the average of all at the same noise levels; None: not seen yet."""
        sums, counts = (each.cpu().double().reshape(-1, LEVELS) for each in (self.sums, self.counts))
        usual = sums.sum(0) / counts.sum(0).clamp(min=1.0)
        expected = (counts * usual).sum(1)
        seen = counts.sum(1)
        return [
            (sums[index].sum().item() / expected[index].item() if expected[index] > 0 else None, int(seen[index]))
            for index in range(len(seen))
        ]


def bins_of(prediction: Prediction, pictures: Tensor, sigma: Tensor) -> Tensor:
    """The bin of each sample: (B,) int64.

    Args:
        pictures: (B,) int64, indices of the samples' pictures.
        sigma: (B,) noise levels.
    """
    levels = (prediction.time(sigma) * LEVELS).long().clamp(0, LEVELS - 1)
    return pictures * LEVELS + levels
