"""Latents and text embeddings of a run, each computed once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from . import host
from .dataset import Dataset, Sample, size_conditioning


@dataclass(frozen=True)
class Encoded:
    """What the model takes, on the CPU."""

    latents: dict[tuple[int, bool], torch.Tensor]
    """(picture index, flipped) -> (C, ...) float32 in model space"""
    captions: dict[str, Any]
    """caption -> CONDITIONING"""
    prompts: dict[str, Any]
    """prompt of a sample picture -> CONDITIONING"""

    def conditioning(self, dataset: Dataset, sample: Sample, sized: bool) -> Any:
        """A sample's CONDITIONING, with its size and crop where the model wants them."""
        conditioning = self.captions[sample.caption]
        if not sized:
            return conditioning
        picture = dataset.pictures[sample.picture]
        size = size_conditioning(picture, dataset.fits()[sample.picture], sample.flipped)
        return [[embedding, {**options, **size}] for embedding, options in conditioning]


def encode_samples(
    dataset: Dataset,
    samples: Iterable[Sample],
    prompts: Iterable[str],
    base_model: Any,
    clip: Any,
    vae: Any,
    on_progress: Callable[[str, int, int], None],
) -> Encoded:
    """Encodes all pictures and texts that a run needs.

    Args:
        prompts: of sample pictures.
        on_progress: called with (what, done, of how many); may raise to interrupt.
    """
    samples = list(samples)
    views = sorted({(sample.picture, sample.flipped) for sample in samples})
    captions = sorted({sample.caption for sample in samples})
    embeddings = {}
    for done, caption in enumerate(captions):
        on_progress("captions", done, len(captions))
        embeddings[caption] = host.encode_text(clip, caption)
    prompt_embeddings = {prompt: host.encode_text(clip, prompt, is_prompt=True) for prompt in prompts}
    latents = {}
    fits = dataset.fits()
    for done, (index, flipped) in enumerate(views):
        on_progress("pictures", done, len(views))
        pixels = dataset.pictures[index].load(fits[index])
        if flipped:
            pixels = pixels.flip(1)
        latent = host.to_model_space(base_model, host.encode_pixels(vae, pixels[None]).float())
        latents[index, flipped] = latent[0].clone()
    return Encoded(latents, embeddings, prompt_embeddings)


def latent_spread(encoded: Encoded) -> float:
    """Standard deviation over all latents; about 1 where VAE and model belong together."""
    return float(torch.cat([latent.flatten() for latent in encoded.latents.values()]).std())
