"""The batches of a run, and the text conditions of its samples and prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import host
from ..config import ObjectiveConfig
from ..data.dataset import Dataset, Sample
from ..data.encode import Encoded, sized
from ..data.plan import Plan
from ..learning.batches import Batch, Example, make_batch
from ..learning.family import Family
from .learner import Networks


@dataclass(frozen=True)
class TextConditions:
    """Text conditioning of samples and prompts: cached embeddings, or live ones of text encoders in training."""

    clip: Any
    """the graph's CLIP"""
    dataset: Dataset
    encoded: Encoded
    is_sized: bool
    """whether the model takes each picture's size and crop"""

    def of(self, networks: Networks, sample: Sample) -> Any:
        """A sample's CONDITIONING; it carries the text encoders' graph where they are trained."""
        if networks.text_encoder is None:
            return self.encoded.conditioning(self.dataset, sample, self.is_sized)
        text = host.encode_text_with(self.clip, networks.text_encoder, sample.caption)
        return sized(text, self.dataset, sample, self.is_sized)

    def of_prompt(self, networks: Networks, prompt: str) -> Any:
        """The CONDITIONING of a sample picture's prompt."""
        if networks.text_encoder is None:
            return self.encoded.prompt(prompt)
        return host.encode_text_with(self.clip, networks.text_encoder, prompt, is_prompt=True)

    def of_batch(self, networks: Networks, samples: Sequence[Sample], latents: torch.Tensor) -> Any:
        """The condition that `predict` takes for a batch.

        Args:
            latents: (B, C, ...) of the samples.
        """
        conditionings = [self.of(networks, sample) for sample in samples]
        return host.batch_conds(networks.model, conditionings, latents, host.training_guidance(networks.model))


@dataclass(frozen=True)
class BatchSource:
    """The batches of a run, by step and forward pass."""

    texts: TextConditions
    plan: Plan
    family: Family
    objective: ObjectiveConfig
    seed: int

    def batch(self, networks: Networks, step: int, micro: int) -> Batch:
        """A batch on the CPU; without its condition where the text encoders are trained."""
        samples, texts = self.plan.samples_at(step, micro), self.texts
        examples = [
            Example(
                latent=texts.encoded.latent(sample),
                weight=texts.dataset.loss_weight(sample),
                mask=texts.encoded.mask(sample),
                picture=sample.picture,
            )
            for sample in samples
        ]

        def cond_for(latents: torch.Tensor) -> Any:
            return texts.of_batch(networks, samples, latents) if networks.text_encoder is None else None

        return make_batch(examples, self.family, self.objective, (self.seed, step, micro), cond_for)

    def with_live_text(self, networks: Networks, batch: Batch, step: int, micro: int) -> Batch:
        """The batch with a condition that carries the text encoders' graph, where they are trained."""
        if networks.text_encoder is None:
            return batch
        return replace(batch, cond=self.texts.of_batch(networks, self.plan.samples_at(step, micro), batch.x_0))
