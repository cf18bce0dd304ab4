"""Small whole runs, for tests that start many of them, and stop them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.run import live as events
from lora_kiln.training.run.folder import CONTINUE
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
) -> Trained:
    """A run on SD1.5, small, that goes on where one of its name stopped."""
    small = small or models.sd15()
    return train_lora(small.model, small.clip, small.vae, data or dataset(), config, name, None, previous)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Does something when a step is done."""
    done = events.RunEvents.step

    def acting(self, *args):
        done(self, *args)
        if len(self.losses) == step:
            act()

    monkeypatch.setattr(events.RunEvents, "step", acting)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Presses the host's own stop button when a step is done."""
    at_step(monkeypatch, step, comfy.model_management.interrupt_current_processing)


def stopped_at(
    monkeypatch: pytest.MonkeyPatch, step: int, config: LoRAConfig, name: str = "test", data: Dataset | None = None
) -> None:
    """A run that was stopped when a step was done."""
    with monkeypatch.context() as patched:
        interrupt_at(patched, step)
        with pytest.raises(host.Interrupted):
            run(config, name, data=data)
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
