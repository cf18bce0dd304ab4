"""The LoRA of a run: its tensors and metadata, and files written during training."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import NamedTuple

import torch

from .. import host
from ..lora.export import AS_TRAINED, in_precision, lora_tensors
from ..lora.lora import DTYPES, LoRAModel
from ..lora.metadata import RunFacts, lora_metadata
from ..lora.save import save_lora
from ..model.learner import Learner
from .prepare import Prepared
from .progress import Progress
from .report import data_facts

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Learned(NamedTuple):
    """A LoRA's tensors, and the step after which they were taken."""

    step: int
    tensors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LoRAWriter:
    """Makes the LoRA of a run.

    Args:
        run: the id of the run.
    """

    prepared: Prepared
    run: str

    def tensors(self, learner: Learner) -> dict[str, torch.Tensor]:
        """The LoRA's tensors after the last step."""
        with learner.in_use():
            return lora_tensors(learner.networks.adapters, self.prepared.base.layer_names)

    def latest(self, learner: Learner, progress: Progress) -> Learned:
        """What was learned by the last step."""
        return Learned(progress.step, self.tensors(learner))

    def best(self, learner: Learner, progress: Progress) -> Learned:
        """What was learned by the step of the best validation; by the last step if no best LoRA is kept."""
        best = progress.best_validation
        return Learned(best[0], progress.best) if best and progress.best else self.latest(learner, progress)

    def lora(self, learned: Learned) -> LoRAModel:
        """The LoRA with metadata and with the entries that are not trained."""
        prepared, base = self.prepared, self.prepared.base
        plan = prepared.data.plan
        version, architecture = host.base_version(prepared.models.model)
        facts = RunFacts(
            name=prepared.name,
            base_version=version,
            architecture=architecture,
            prediction=base.family.prediction.name,
            step=learned.step,
            total_steps=plan.steps,
            epoch=plan.epoch_of(max(0, learned.step - 1)) + 1,
            epochs=plan.epoch_of(plan.steps - 1) + 1,
            started_at=prepared.started_at,
            ended_at=time(),
            precision=DTYPE_NAMES[base.dtype],
            clip_skip=host.clip_skip(prepared.models.clip),
            session=self.run,
        )
        metadata = lora_metadata(prepared.config, facts, data_facts(prepared.data.training))
        layers = {names.kohya: names for names in base.layer_names.values()}
        tensors = {**prepared.frozen, **learned.tensors}
        return LoRAModel(tensors, metadata, prepared.name, layers, prepared.config.run.save_precision)

    def write(self, learned: Learned, suffix: str = "") -> Path:
        """Writes the LoRA to `<name>-step<step><suffix>.safetensors` in the folder of LoRAs. Returns its path."""
        lora = in_precision(self.lora(learned), AS_TRAINED)
        path = host.lora_folder() / f"{self.prepared.name}-step{learned.step:06}{suffix}.safetensors"
        path = save_lora(path, lora, lora.metadata)
        host.log("wrote %s", path)
        return path
