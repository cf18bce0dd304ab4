"""Validation: pictures held out of training, at noise and timesteps that stay the same all through the run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from .batches import Batch
from .config import LoRAConfig
from .dataset import Dataset, Sample
from .objective import Family, Predict, sample_losses
from .problems import raise_if_any
from .randomness import derive_seed, tensor_generator

TIMES = 4
"""noise levels that each picture is looked at"""
MOST = 64
"""pictures held out, whatever their share: more would cost time and tell little"""


def hold_out(dataset: Dataset, config: LoRAConfig) -> tuple[Dataset, Dataset | None]:
    """(what is trained on, what is held out); a picture's lot depends on the seed and its name alone.

    Regularisation pictures are never held out.

    Raises:
        InputError: there are too few pictures to hold any out.
    """
    if not config.validation_share:
        return dataset, None
    own = [index for index, picture in enumerate(dataset.pictures) if not picture.is_regularisation]
    if len(own) < 2:
        problem = f"validation_share is {config.validation_share:g}, but there is no picture to spare: set it to 0."
        raise_if_any("LoRA Config", [problem])
    count = min(MOST, len(own) - 1, max(1, round(config.validation_share * len(own))))
    lots = sorted(own, key=lambda index: derive_seed(config.seed, dataset.pictures[index].name, index, "held out"))
    held = set(lots[:count])
    pictures = dataset.pictures
    return (
        replace(dataset, pictures=tuple(each for index, each in enumerate(pictures) if index not in held)),
        replace(dataset, pictures=tuple(each for index, each in enumerate(pictures) if index in held)),
    )


def samples_of(dataset: Dataset) -> list[Sample]:
    """Each picture once: its middle, not mirrored, with its whole caption."""
    return [Sample(index, fit, False, dataset.caption(index)) for index, fit in enumerate(dataset.fits())]


def noised(latent: torch.Tensor, family: Family, seed: int, number: int) -> Batch:
    """A picture at each of the validation's noise levels; its `cond` is left to the caller.

    Args:
        latent: (C, ...) in model space.
        number: of the picture.
    """
    keys = [(seed, number, time, "validation") for time in range(TIMES)]
    noise = torch.stack([torch.randn(latent.shape, generator=tensor_generator(*key)) for key in keys])
    times = [(time + 0.5) / TIMES for time in range(TIMES)]
    is_flow = family.prediction == "flow"
    table = family.sigmas
    sigma = torch.tensor([time if is_flow else float(table[int(time * len(table))]) for time in times])
    x_0 = latent[None].expand(TIMES, *latent.shape).contiguous()
    return Batch(x_0, noise, sigma, torch.ones(TIMES), None)


@torch.no_grad()
def mean_loss(predict: Predict, family: Family, batches: Sequence[Batch]) -> float:
    """The plain squared error in the family's own space, over all of them."""
    totals = [
        sample_losses(predict, family, each.x_0, each.noise, each.sigma, each.cond).double().sum().item()
        for each in batches
    ]
    return sum(totals) / sum(len(each.x_0) for each in batches)


@dataclass
class Validations:
    """What validation has found so far."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss)"""
    patience: int = 0
    """times without a better loss after which training ends; 0 = never"""

    @property
    def best(self) -> tuple[int, float] | None:
        """The (step, loss) of the lowest; the first of them."""
        return min(self.losses, key=lambda each: each[1]) if self.losses else None

    def add(self, step: int, loss: float) -> bool:
        """Takes one more; gives whether it is the best so far."""
        is_best = math.isfinite(loss) and (self.best is None or loss < self.best[1])
        self.losses.append((step, loss if math.isfinite(loss) else math.inf))
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        best = self.best
        return bool(self.patience and best and sum(step > best[0] for step, _ in self.losses) >= self.patience)
