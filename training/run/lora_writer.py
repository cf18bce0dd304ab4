"""The LoRA that a run makes: what was learned under a file's names, with metadata that say how."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import host
from ..config import LoRAConfig
from ..data.dataset import Dataset
from ..data.plan import Plan
from ..learning.family import Family
from ..lora.export import AS_TRAINED, in_precision, lora_tensors
from ..lora.lora import DTYPES, LoRAModel
from ..lora.metadata import RunFacts, lora_metadata
from ..lora.save import save_lora
from ..model.learner import Learner
from .report import data_facts


@dataclass(frozen=True)
class Maker:
    """Makes LoRAs of what one run has learned."""

    name: str
    """of the LoRA; its files begin with it"""
    model: Any
    """the graph's"""
    clip: Any
    """the graph's"""
    dataset: Dataset
    """that is trained on"""
    config: LoRAConfig
    plan: Plan
    family: Family
    dtype: torch.dtype
    """that the model computes in"""
    names: Mapping[str, host.LayerNames]
    """what a layer is called in a LoRA file, by state-dict key of its weight"""
    frozen: Mapping[str, torch.Tensor]
    """entries of a LoRA that is continued which stay as they are"""
    started_at: float
    """seconds since 1970"""

    def tensors(self, learner: Learner) -> dict[str, torch.Tensor]:
        """The LoRA's as it is now."""
        with learner.in_use():
            return lora_tensors(learner.networks.adapters, self.names)

    def lora(self, tensors: Mapping[str, torch.Tensor], step: int, session: str) -> LoRAModel:
        """The LoRA with its metadata.

        Args:
            tensors: as `tensors` gave them after a step.
            session: id of the run.
        """
        version, architecture = host.base_version(self.model)
        facts = RunFacts(
            self.name, version, architecture, self.family.prediction.name, step, self.plan.steps,
            self.plan.epoch_of(max(0, step - 1)) + 1, self.plan.epoch_of(self.plan.steps - 1) + 1, self.started_at,
            time.time(), {dtype: name for name, dtype in DTYPES.items()}[self.dtype],
            clip_skip=host.clip_skip(self.clip), session=session,
        )  # fmt: skip
        metadata = lora_metadata(self.config, facts, data_facts(self.dataset))
        layers = {names.kohya: names for names in self.names.values()}
        return LoRAModel({**self.frozen, **tensors}, metadata, self.name, layers, self.config.run.save_precision)

    def save(self, lora: LoRAModel, step: int, suffix: str = "") -> Path:
        """Writes a file on the way, and gives where it lies.

        Args:
            step: that the LoRA is of.
            suffix: of the file's name.
        """
        written = in_precision(lora, AS_TRAINED)
        path = save_lora(
            host.lora_folder() / f"{self.name}-step{step:06}{suffix}.safetensors", written, written.metadata
        )
        host.log("wrote %s", path)
        return path
