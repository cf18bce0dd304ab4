"""Pictures drawn with the graph's MODEL by the host's samplers."""

from typing import Any

import comfy.sample
import comfy.samplers
import torch

from .latents import decode_latents, latent_shape


def draw(
    model: Any,
    clip: Any,
    vae: Any,
    prompt: str,
    negative_prompt: str,
    *,
    seed: int,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    sampler: str,
    scheduler: str,
) -> torch.Tensor:
    """One picture (H, W, 3) in [0, 1], the same as the KSampler and VAE Decode nodes give.

    Args:
        width, height: in pixels, multiples of 8.
        guidance: classifier-free guidance scale (KSampler's cfg).
    """
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(negative_prompt))
    latent = torch.zeros(1, *latent_shape(model, vae, width, height))
    latent = comfy.sample.fix_empty_latent_channels(model, latent)
    noise = comfy.sample.prepare_noise(latent, seed)
    samples = comfy.sample.sample(
        model, noise, steps, guidance, sampler, scheduler, positive, negative, latent, seed=seed
    )
    return decode_latents(vae, samples)[0]


def sampler_names() -> list[str]:
    """Names of the host's samplers."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """Names of the host's noise schedules."""
    return list(comfy.samplers.KSampler.SCHEDULERS)
