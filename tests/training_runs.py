"""Small whole runs, for tests that start many of them."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from lora_kiln.training import events
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.dataset import Dataset, DatasetSettings, Picture

SIDE = 64
STEPS = 4
SETTINGS = DatasetSettings(resolution=SIDE, bucket_step=16, shortest_side=32)
CONFIG = LoRAConfig(rank=4, alpha=2.0, learning_rate=1e-2, steps=STEPS, batch_size=2, seed=3, precision="fp32")
SHAPES = ((64, 64), (64, 64), (96, 48), (48, 96))  # width, height


def dataset(settings: DatasetSettings = SETTINGS) -> Dataset:
    generator = torch.Generator().manual_seed(5)
    pictures = [
        Picture(f"{n}", w, h, f"picture number {n}", pixels=torch.rand(h, w, 3, generator=generator))
        for n, (w, h) in enumerate(SHAPES)
    ]
    return Dataset(tuple(pictures), settings)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Presses the host's own stop button when a step is done."""
    done = events.RunEvents.step

    def pressing(self, *args):
        done(self, *args)
        if len(self.losses) == step:
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(events.RunEvents, "step", pressing)
