"""Validation: the loss on held-out pictures, at noise and timesteps that are the same at every step of the run."""

from collections.abc import Sequence

import torch

from ..basics.randomness import tensor_generator
from ..config import ObjectiveConfig
from ..data.dataset import Dataset, Sample
from ..learning.batches import Batch
from ..learning.objective import Predict, sample_losses
from ..learning.prediction import Prediction

TIMES = 4
"""noise levels at which each picture is measured"""


def samples_of(dataset: Dataset) -> list[Sample]:
    """Each picture once: center crop, not mirrored, with its full caption."""
    return [Sample(index, fit, False, dataset.caption(index)) for index, fit in enumerate(dataset.fits())]


def noised(latent: torch.Tensor, prediction: Prediction, seed: int, number: int) -> Batch:
    """A batch of one picture at each of the validation's noise levels; the caller sets `cond`.

    Args:
        latent: (C, ...) in model space.
        number: of the picture.
    """
    keys = [(seed, number, time, "validation") for time in range(TIMES)]
    noise = torch.stack([torch.randn(latent.shape, generator=tensor_generator(*key)) for key in keys])
    sigma = torch.tensor([prediction.sigma_at((time + 0.5) / TIMES) for time in range(TIMES)])
    x_0 = latent[None].expand(TIMES, *latent.shape).contiguous()
    return Batch(x_0, noise, sigma, torch.ones(TIMES), None)


@torch.no_grad()
def mean_loss(predict: Predict, prediction: Prediction, batches: Sequence[Batch]) -> float:
    """The mean squared error in the space of the prediction, without the recipe's weights, over all batches."""
    plain = ObjectiveConfig()
    totals = [sample_losses(predict, prediction, plain, batch).cpu().double().sum().item() for batch in batches]
    return sum(totals) / sum(len(batch.x_0) for batch in batches)
