"""Batches of a run: which samples at which step, and their noise."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..basics.pytree import pytree_node
from ..basics.randomness import tensor_generator
from ..config import LoRAConfig
from .objective import Family, density_and_shift, draw_noise, draw_sigma, multires_noise
from .picture_losses import cell_of


@pytree_node
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
    keys = [(config.run.seed, step, micro, slot) for slot in range(len(latents))]
    noise = torch.stack([_noise(tuple(x_0.shape[1:]), config, key) for key in keys])
    sigma = torch.stack([_sigma(tuple(x_0.shape[1:]), family, config, key) for key in keys])
    perturbation = None
    if config.objective.ip_noise_gamma:
        extra = [torch.randn(x_0.shape[1:], generator=tensor_generator(*key, "perturbation")) for key in keys]
        perturbation = config.objective.ip_noise_gamma * torch.stack(extra)
    mask = None
    if any(each is not None for each in masks):
        whole = torch.ones(x_0.shape[-2:])
        mask = torch.stack([whole if each is None else each for each in masks])[:, None]
    cells = None
    if pictures is not None:
        cells = torch.tensor([cell_of(family, *each) for each in zip(pictures, sigma.tolist(), strict=True)])
    return Batch(x_0, noise, sigma, torch.tensor(weights), conds_for(x_0), mask, perturbation, cells)


def _noise(shape: tuple[int, ...], config: LoRAConfig, key: tuple[int, ...]) -> torch.Tensor:
    noise = draw_noise(shape, config.objective.noise_offset, tensor_generator(*key, "noise"))
    if config.objective.multires_noise_iterations:
        generator = tensor_generator(*key, "multires")
        noise = multires_noise(
            noise, config.objective.multires_noise_iterations, config.objective.multires_noise_discount, generator
        )
    return noise


def _sigma(shape: tuple[int, ...], family: Family, config: LoRAConfig, key: tuple[int, ...]) -> torch.Tensor:
    objective = config.objective
    density, shift = density_and_shift(family, objective.timestep_sampling, objective.timestep_shift, *shape[-2:])
    return draw_sigma(
        family, tensor_generator(*key, "sigma"), density, objective.logit_mean, objective.logit_std, shift,
        objective.min_timestep, objective.max_timestep,
    )  # fmt: skip


def parts(batch: Batch, most: int) -> Iterator[Batch]:
    """The batch in parts of at most so many pictures, whose losses and gradients add up to the batch's."""
    whole = len(batch.x_0)
    if whole <= most:
        yield batch
        return
    for start in range(0, whole, most):
        rows = list(range(start, min(start + most, whole)))
        pick = slice(start, start + len(rows))
        yield Batch(
            batch.x_0[pick], batch.noise[pick], batch.sigma[pick], batch.weight[pick] * (len(rows) / whole),
            rows_of(batch.cond, rows),
            None if batch.mask is None else batch.mask[pick],
            None if batch.perturbation is None else batch.perturbation[pick],
            None if batch.cells is None else batch.cells[pick],
        )  # fmt: skip


def rows_of(
    groups: list[tuple[list[int], dict[str, torch.Tensor]]], rows: Sequence[int]
) -> list[tuple[list[int], dict[str, torch.Tensor]]]:
    """What `batch_conds` would give for these samples of the batch alone, in this order.

    Args:
        rows: indices into the batch, ascending.
    """
    picked = []
    for indices, conds in groups:
        mine = [place for place, index in enumerate(indices) if index in rows]
        if mine:
            own = {key: value[mine] if _is_by_sample(value, len(indices)) else value for key, value in conds.items()}
            picked.append(([rows.index(indices[place]) for place in mine], own))
    return picked


def _is_by_sample(value: Any, samples: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == samples
