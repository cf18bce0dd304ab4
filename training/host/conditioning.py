"""The MODEL's forward pass on a batch: conditionings as its arguments, and its prediction."""

import uuid
from collections.abc import Sequence
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import torch

from ..learning.batches import rows_of
from .families import facts_about
from .model_patches import ONE_BY_ONE
from .model_sampling import sampler_sigmas
from .text_encoder import Conditioning

Groups = list[tuple[list[int], dict[str, Any]]]
"""(sample indices, arguments of `apply_model`) of each part of a batch"""

POSITIVE, NEGATIVE = "positive", "negative"
"""What the host calls a prompt, and one to be guided away from."""
PROMPT_TYPE = "lora_kiln_prompt_type"
"""Key of a negative prompt's arguments that says so; it is not handed to the model."""
TOLD_STEPS = 20
"""Steps of the schedule that patches are told: training has no schedule of its own."""


def batch_conds(
    base_model: Any,
    conditionings: Sequence[Conditioning],
    latents: torch.Tensor,
    guidance: float | None = None,
    prompt_type: str = POSITIVE,
) -> Groups:
    """The arguments of `apply_model` for a batch in which each sample has its own conditioning.

    Args:
        conditionings: one per sample.
        latents: (B, C, ...); only their shape and device are used: the arguments will lie there.
        guidance: for a model that `takes_guidance`; None = the host's default.
        prompt_type: POSITIVE or NEGATIVE.

    Returns:
        One group, or several if the conditionings' lengths differ and cannot be concatenated.
    """
    extra = {} if guidance is None or not _takes_guidance(base_model) else {"guidance": guidance}
    groups: list[tuple[list[int], list[dict[str, Any]]]] = []
    for index, conditioning in enumerate(conditionings):
        conds = _model_conds(base_model, conditioning, latents[index : index + 1], extra, prompt_type)
        for indices, members in groups:
            first = members[0]
            if first.keys() == conds.keys() and all(first[key].can_concat(conds[key]) for key in conds):
                indices.append(index)
                members.append(conds)
                break
        else:
            groups.append(([index], [conds]))
    told = {PROMPT_TYPE: prompt_type} if prompt_type == NEGATIVE else {}
    return [(indices, _concatenated(members) | told) for indices, members in groups]


def predict(
    base_model: Any, options: dict[str, Any], x_t: torch.Tensor, sigma: torch.Tensor, groups: Groups
) -> torch.Tensor:
    """x_0 (B, C, ...) in float32 from x_t (B, C, ...), sigma (B,) and `batch_conds`.

    Args:
        options: from `transformer_options`.
    """
    if options.get(ONE_BY_ONE):
        groups = [([row], conds) for row in range(len(x_t)) for _, conds in rows_of(groups, [row])]
    if len(groups) == 1:
        return _passed(base_model, options, x_t, sigma, groups[0][1])
    parts = [_passed(base_model, options, x_t[rows], sigma[rows], conds) for rows, conds in groups]
    order = torch.tensor([row for rows, _ in groups for row in rows], device=x_t.device)
    return torch.cat(parts)[order.argsort()]


def _passed(
    base_model: Any, options: dict[str, Any], x_t: torch.Tensor, sigma: torch.Tensor, conds: dict[str, Any]
) -> torch.Tensor:
    """One forward pass, in which patches are told what the host's sampler tells them."""
    arguments = {key: value for key, value in conds.items() if key != PROMPT_TYPE}
    told = {
        "sigmas": sigma,
        "cond_or_uncond": [1 if conds.get(PROMPT_TYPE) == NEGATIVE else 0],
        "uuids": [uuid.uuid4()],  # patches keep things by them: no two passes of training have the same text
    }
    if options.get(ONE_BY_ONE):
        told["sample_sigmas"] = _schedule_through(base_model, sigma)
    return base_model.apply_model(x_t, sigma, transformer_options={**options, **told}, **arguments)


def _schedule_through(base_model: Any, sigma: torch.Tensor) -> torch.Tensor:
    """Falling noise levels of the host's usual schedule, ending in 0, and the level (1,) of a pass among them."""
    levels = sampler_sigmas(base_model, TOLD_STEPS).to(sigma)
    return torch.cat([levels[levels > sigma], sigma, levels[levels < sigma]])


def takes_guidance(model: Any) -> bool:
    """Whether the MODEL has distilled guidance: a guidance value as input, and no negative prompt when sampling."""
    return _takes_guidance(model.model)


def training_guidance(base_model: Any) -> float | None:
    """The guidance value that a model with distilled guidance gets in training; None for others."""
    return facts_about(base_model).guidance if _takes_guidance(base_model) else None


def wants_size_conditioning(model: Any) -> bool:
    """Whether the MODEL takes each picture's size and crop."""
    return facts_about(model.model).has_size_conditioning


def _takes_guidance(base_model: Any) -> bool:
    is_distilled = bool(base_model.model_config.unet_config.get("guidance_embed"))
    return is_distilled and facts_about(base_model).guidance is not None


def _model_conds(
    base_model: Any, conditioning: Conditioning, latent: torch.Tensor, extra: dict[str, Any], prompt_type: str
) -> dict[str, Any]:
    device = latent.device
    embedding, options = conditioning[0]
    conds = comfy.sampler_helpers.convert_cond([[embedding, {**options, **extra}]])
    conds = comfy.samplers.encode_model_conds(base_model.extra_conds, conds, latent, device, prompt_type)
    return {key: value.process_cond(batch_size=1, area=None) for key, value in conds[0]["model_conds"].items()}


def _concatenated(members: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    first, *rest = members
    return {key: value.concat([other[key] for other in rest]) for key, value in first.items()}
