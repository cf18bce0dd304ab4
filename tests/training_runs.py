"""Small whole runs, for tests that start many of them, and stop them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.run.prepare import Models
from lora_kiln.training.run.recorder import Record
from lora_kiln.training.run.resume import CONTINUE
from lora_kiln.training.run.run_recorder import RunRecorder, recorded
from lora_kiln.training.run.trainer import Trained, train_lora

import models

SIDE = 64
STEPS = 4
SETTINGS = DatasetSettings(resolution=SIDE, bucket_step=16, shortest_side=32)
CONFIG = LoRAConfig.of(rank=4, alpha=2.0, learning_rate=1e-2, steps=STEPS, batch_size=2, seed=3, precision="fp32")
SHAPES = ((64, 64), (64, 64), (96, 48), (48, 96))  # width, height


def dataset(settings: DatasetSettings = SETTINGS) -> Dataset:
    generator = torch.Generator().manual_seed(5)
    pictures = [
        Picture(f"{n}", w, h, f"picture number {n}", pixels=torch.rand(h, w, 3, generator=generator))
        for n, (w, h) in enumerate(SHAPES)
    ]
    return Dataset(tuple(pictures), settings)


def changed(**values: Any) -> LoRAConfig:
    """The usual recipe with other values."""
    return CONFIG.changed(**values)


def run(
    config: LoRAConfig,
    name: str = "test",
    previous: str = CONTINUE,
    data: Dataset | None = None,
    small: models.Small | None = None,
    record: Record = recorded,
) -> Trained:
    """A run on SD1.5 with few blocks that goes on where one of its name stopped."""
    return train_lora(
        graph_models(small or models.few_blocks()), data or dataset(), config, name, previous=previous, record=record
    )


def graph_models(small: models.Small) -> Models:
    """MODEL, CLIP and VAE as the node hands them to a run."""
    return Models(small.model, small.clip, small.vae)


def watched(
    stepped: Callable[[RunRecorder], Any] = lambda recorder: None,
    shown: Callable[[RunRecorder, str, str], Any] = lambda recorder, phase, message: None,
) -> Record:
    """Records a run as ever, and calls `stepped` after each step and `shown` after each phase with its message."""

    class Watched(RunRecorder):
        def stepped(self) -> None:
            super().stepped()
            stepped(self)

        def show(self, phase: str, done: int = 0, total: int = 0, message: str = "") -> None:
            super().show(phase, done, total, message)
            shown(self, phase, message)

    return partial(recorded, recorder=Watched)


def at_steps(acts: Mapping[int, Callable[[], Any]]) -> Record:
    """Does something when each of some steps is done."""
    return watched(lambda recorder: acts.get(recorder.progress.step, lambda: None)())


def at_step(step: int, act: Callable[[], Any]) -> Record:
    """Does something when a step is done."""
    return at_steps({step: act})


def interrupt_at(step: int) -> Record:
    """Presses the host's own stop button when a step is done."""
    return at_step(step, comfy.model_management.interrupt_current_processing)


def stopped_at(
    step: int,
    config: LoRAConfig,
    name: str = "test",
    data: Dataset | None = None,
    small: models.Small | None = None,
) -> None:
    """A run that was stopped when a step was done."""
    with pytest.raises(host.Interrupted):
        run(config, name, data=data, small=small, record=interrupt_at(step))
    comfy.model_management.interrupt_current_processing(False)


def assert_same(ours: Trained, theirs: Trained) -> None:
    """Two runs gave the same to the last bit."""
    assert ours.losses == theirs.losses
    assert ours.lora.keys() == theirs.lora.keys()
    assert [name for name in ours.lora if not torch.equal(ours.lora[name], theirs.lora[name])] == []


def assert_untouched(small: models.Small, before: dict[str, torch.Tensor]) -> None:
    """MODEL, CLIP and VAE are as they were, and the host is as if nothing had been trained."""
    after = models.state(small)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert models.hooks(small.model.model) == 0
    parameters = list(small.model.model.diffusion_model.parameters())
    assert all(each.grad is None for each in parameters)
    assert len({each.requires_grad for each in parameters}) == 1  # no host asks for gradients of some alone
    assert comfy.model_management.in_training is False
    assert small.model.patches == {}
