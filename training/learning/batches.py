"""Batches: clean latents with their noise and noise levels, as one forward pass takes them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..basics.pytree import pytree_node
from ..basics.randomness import tensor_generator
from ..config import ObjectiveConfig
from .family import Family, density_of
from .noise import draw_noise, multires_noise
from .picture_losses import bins_of


@dataclass(frozen=True)
class Example:
    """One sample of a batch, without noise."""

    latent: Tensor
    """(C, ...) float32, in model space"""
    weight: float = 1.0
    """of its loss"""
    mask: Tensor | None = None
    """(h, w) in [0, 1], the weight of each pixel's loss; None: 1 everywhere"""
    picture: int = 0
    """index of its picture in the dataset"""


@pytree_node
@dataclass(frozen=True)
class Batch:
    """The input of one forward pass and its loss, float32."""

    x_0: Tensor
    """(B, C, ...) clean latents in model space"""
    noise: Tensor
    """(B, C, ...)"""
    sigma: Tensor
    """(B,) noise levels"""
    weight: Tensor
    """(B,) of each sample's loss"""
    cond: Any
    """the condition that `predict` takes"""
    mask: Tensor | None = None
    """(B, 1, h, w) in [0, 1], the weight of each pixel's loss"""
    perturbation: Tensor | None = None
    """(B, C, ...) added to the noise in x_t by input perturbation"""
    bins: Tensor | None = None
    """(B,) int64, the bins of `PictureLosses` that the losses are added to"""


def make_batch(
    examples: Sequence[Example],
    family: Family,
    objective: ObjectiveConfig,
    key: tuple[int, int, int],
    cond_for: Callable[[Tensor], Any] = lambda latents: None,
) -> Batch:
    """A batch on the CPU; the noise of each sample depends on the key and its index in the batch only.

    Args:
        examples: with latents of one shape.
        key: (seed, optimizer step, forward pass within the step).
        cond_for: the condition for the batch's latents (B, C, ...).
    """
    x_0 = torch.stack([example.latent for example in examples])
    shape = tuple(x_0.shape[1:])
    density = density_of(family, objective, *shape[-2:])
    keys = [(*key, index) for index in range(len(examples))]
    sigma = torch.stack([family.prediction.draw_sigma(density, tensor_generator(*each, "sigma")) for each in keys])
    perturbation = None
    if objective.ip_noise_gamma:
        extra = [torch.randn(shape, generator=tensor_generator(*each, "perturbation")) for each in keys]
        perturbation = objective.ip_noise_gamma * torch.stack(extra)
    mask = None
    if any(example.mask is not None for example in examples):
        ones = torch.ones(shape[-2:])
        mask = torch.stack([ones if example.mask is None else example.mask for example in examples])[:, None]
    pictures = torch.tensor([example.picture for example in examples])
    return Batch(
        x_0=x_0,
        noise=torch.stack([_noise(shape, objective, each) for each in keys]),
        sigma=sigma,
        weight=torch.tensor([example.weight for example in examples]),
        cond=cond_for(x_0),
        mask=mask,
        perturbation=perturbation,
        bins=bins_of(family.prediction, pictures, sigma),
    )


def _noise(shape: tuple[int, ...], objective: ObjectiveConfig, key: tuple[int, ...]) -> Tensor:
    noise = draw_noise(shape, objective.noise_offset, tensor_generator(*key, "noise"))
    layers = objective.multires_noise_iterations
    if not layers:
        return noise
    return multires_noise(noise, layers, objective.multires_noise_discount, tensor_generator(*key, "multires"))


def parts(batch: Batch, most: int) -> Iterator[Batch]:
    """The batch in parts of at most `most` samples, whose losses and gradients add up to those of the batch."""
    whole = len(batch.x_0)
    if whole <= most:
        yield batch
        return
    for start in range(0, whole, most):
        rows = list(range(start, min(start + most, whole)))
        span = slice(start, start + len(rows))
        yield Batch(
            x_0=batch.x_0[span],
            noise=batch.noise[span],
            sigma=batch.sigma[span],
            weight=batch.weight[span] * (len(rows) / whole),
            cond=rows_of(batch.cond, rows),
            mask=None if batch.mask is None else batch.mask[span],
            perturbation=None if batch.perturbation is None else batch.perturbation[span],
            bins=None if batch.bins is None else batch.bins[span],
        )


def rows_of(
    groups: list[tuple[list[int], dict[str, Tensor]]], rows: Sequence[int]
) -> list[tuple[list[int], dict[str, Tensor]]]:
    """The condition of some samples of a batch, in the order of `rows`.

    Args:
        groups: the batch's condition: (indices of samples, arguments of the model) for each group of samples whose
            arguments can be joined.
        rows: indices into the batch, ascending.
    """
    picked = []
    for indices, conds in groups:
        members = [position for position, index in enumerate(indices) if index in rows]
        if members:
            chosen = {
                key: value[members] if _is_by_sample(value, len(indices)) else value for key, value in conds.items()
            }
            picked.append(([rows.index(indices[position]) for position in members], chosen))
    return picked


def _is_by_sample(value: Any, samples: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == samples
