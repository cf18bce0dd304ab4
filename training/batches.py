"""Batches of a run: which samples at which step, and their noise."""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .config import LoRAConfig
from .dataset import Dataset, Sample
from .objective import Family, density_and_shift, draw_noise, draw_sigma, multires_noise
from .picture_losses import cell_of
from .randomness import tensor_generator


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes, float32."""

    x_0: torch.Tensor
    """(B, C, ...) clean latents in model space"""
    noise: torch.Tensor
    """(B, C, ...)"""
    sigma: torch.Tensor
    """(B,)"""
    weight: torch.Tensor
    """(B,) of each sample's loss"""
    cond: Any
    """what `predict` takes"""
    mask: torch.Tensor | None = None
    """(B, 1, h, w) in [0, 1], of each place's loss"""
    perturbation: torch.Tensor | None = None
    """(B, C, ...) what input perturbation adds to the noise"""
    cells: torch.Tensor | None = None
    """(B,) int64, where each sample's loss is added up; see `picture_losses`"""


class Plan:
    """The samples of every forward pass of a run, epoch after epoch; a function of dataset, config and seed."""

    def __init__(self, dataset: Dataset, config: LoRAConfig):
        self.dataset = dataset
        self.config = config
        self._epochs: list[list[list[Sample]]] = []
        self._starts = [0]
        for _ in range(config.epochs):
            self._add_epoch()
        self.steps = math.ceil(self._starts[-1] / config.gradient_accumulation) if config.epochs else config.steps

    def epoch_of(self, step: int) -> int:
        """The epoch (from 0) that a step begins in."""
        return self._place(step * self.config.gradient_accumulation)[0]

    def samples_at(self, step: int, micro: int) -> list[Sample]:
        """The samples of one forward pass."""
        epoch, index = self._place(step * self.config.gradient_accumulation + micro)
        return self._epochs[epoch][index]

    def largest(self) -> tuple[int, int]:
        """The (step, forward pass) of the first epoch that has the most pixels."""
        self._place(0)
        passes = min(self._starts[1], self.steps * self.config.gradient_accumulation)
        places = [divmod(passed, self.config.gradient_accumulation) for passed in range(passes)]

        def pixels(place: tuple[int, int]) -> int:
            return sum(sample.fit.width * sample.fit.height for sample in self.samples_at(*place))

        return max(places, key=pixels)

    def _place(self, passed: int) -> tuple[int, int]:
        """(epoch, batch within it) after so many forward passes; epochs may differ in length by their buckets."""
        while self._starts[-1] <= passed:
            self._add_epoch()
        epoch = bisect.bisect_right(self._starts, passed) - 1
        return epoch, passed - self._starts[epoch]

    def _add_epoch(self) -> None:
        epoch = len(self._epochs)
        self._epochs.append(self.dataset.epoch_batches(epoch, self.config.batch_size, self.config.seed))
        self._starts.append(self._starts[-1] + len(self._epochs[-1]))

    def all_samples(self) -> set[Sample]:
        """Every distinct sample of the run."""
        return {
            sample
            for step in range(self.steps)
            for micro in range(self.config.gradient_accumulation)
            for sample in self.samples_at(step, micro)
        }


def make_batch(
    latents: list[torch.Tensor],
    weights: list[float],
    masks: list[torch.Tensor | None],
    conds_for: Callable[[torch.Tensor], Any],
    family: Family,
    config: LoRAConfig,
    step: int,
    micro: int,
    pictures: list[int] | None = None,
) -> Batch:
    """A batch with its noise, each sample's a function of seed, step and slot, on the CPU.

    Args:
        latents: (C, ...) a sample, all of one shape.
        weights: of each sample's loss.
        masks: (h, w) of each sample's loss, in [0, 1]; None counts as 1 everywhere.
        conds_for: from the batch's latents to what `predict` takes.
        pictures: index of each sample's picture, to add its loss up.
    """
    x_0 = torch.stack(latents)
    keys = [(config.seed, step, micro, slot) for slot in range(len(latents))]
    noise = torch.stack([_noise(tuple(x_0.shape[1:]), config, key) for key in keys])
    sigma = torch.stack([_sigma(tuple(x_0.shape[1:]), family, config, key) for key in keys])
    perturbation = None
    if config.ip_noise_gamma:
        extra = [torch.randn(x_0.shape[1:], generator=tensor_generator(*key, "perturbation")) for key in keys]
        perturbation = config.ip_noise_gamma * torch.stack(extra)
    mask = None
    if any(each is not None for each in masks):
        whole = torch.ones(x_0.shape[-2:])
        mask = torch.stack([whole if each is None else each for each in masks])[:, None]
    cells = None
    if pictures is not None:
        cells = torch.tensor([cell_of(family, *each) for each in zip(pictures, sigma.tolist(), strict=True)])
    return Batch(x_0, noise, sigma, torch.tensor(weights), conds_for(x_0), mask, perturbation, cells)


def _noise(shape: tuple[int, ...], config: LoRAConfig, key: tuple[int, ...]) -> torch.Tensor:
    noise = draw_noise(shape, config.noise_offset, tensor_generator(*key, "noise"))
    if config.multires_noise_iterations:
        generator = tensor_generator(*key, "multires")
        noise = multires_noise(noise, config.multires_noise_iterations, config.multires_noise_discount, generator)
    return noise


def _sigma(shape: tuple[int, ...], family: Family, config: LoRAConfig, key: tuple[int, ...]) -> torch.Tensor:
    density, shift = density_and_shift(family, config.timestep_sampling, config.timestep_shift, *shape[-2:])
    return draw_sigma(
        family, tensor_generator(*key, "sigma"), density, config.logit_mean, config.logit_std, shift,
        config.min_timestep, config.max_timestep,
    )  # fmt: skip
