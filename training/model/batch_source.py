"""What the model is given: the batches of a run, and what a sample or a prompt tells the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from .. import host
from ..config import LoRAConfig
from ..data.dataset import Dataset, Sample
from ..data.encode import Encoded, sized
from ..data.plan import Plan
from ..learning.batches import Batch, make_batch
from ..learning.objective import Family
from .learner import Networks


@dataclass(frozen=True)
class Told:
    """What the samples of a dataset tell the model: embeddings from the cache, or live from encoders in training."""

    clip: Any
    """the graph's"""
    dataset: Dataset
    encoded: Encoded
    is_sized: bool
    """whether the model wants each picture's size and crop"""

    def by(self, nets: Networks, sample: Sample) -> Any:
        """A sample's CONDITIONING; it carries the text encoders' graph where they are trained."""
        if nets.text_encoder is None:
            return self.encoded.conditioning(self.dataset, sample, self.is_sized)
        text = host.encode_text_with(self.clip, nets.text_encoder, sample.caption)
        return sized(text, self.dataset, sample, self.is_sized)

    def by_prompt(self, nets: Networks, prompt: str) -> Any:
        """The CONDITIONING of a sample picture's prompt."""
        if nets.text_encoder is None:
            return self.encoded.prompt(prompt)
        return host.encode_text_with(self.clip, nets.text_encoder, prompt, is_prompt=True)

    def cond(self, nets: Networks, samples: Sequence[Sample], latents: torch.Tensor) -> Any:
        """What `predict` takes with the samples' latents: (B, C, ...)."""
        told = [self.by(nets, sample) for sample in samples]
        return host.batch_conds(nets.model, told, latents, host.training_guidance(nets.model))


@dataclass(frozen=True)
class Feed:
    """The batches of a run."""

    told: Told
    plan: Plan
    family: Family
    config: LoRAConfig

    def batch(self, nets: Networks, step: int, micro: int) -> Batch:
        """A batch on the CPU; without its condition where the text encoders are trained."""
        samples, told = self.plan.samples_at(step, micro), self.told

        def cond_for(latents: torch.Tensor) -> Any:
            return told.cond(nets, samples, latents) if nets.text_encoder is None else None

        return make_batch(
            [told.encoded.latent(sample) for sample in samples],
            [told.dataset.loss_weight(sample) for sample in samples],
            [told.encoded.mask(sample) for sample in samples],
            cond_for, self.family, self.config, step, micro, [sample.picture for sample in samples],
        )  # fmt: skip

    def with_live_text(self, nets: Networks, batch: Batch, step: int, micro: int) -> Batch:
        """The batch with a condition that carries the text encoders' graph, where they are trained."""
        if nets.text_encoder is None:
            return batch
        return replace(batch, cond=self.told.cond(nets, self.plan.samples_at(step, micro), batch.x_0))
