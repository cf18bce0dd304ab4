"""Runs whose folders lie in tests/data/runs-0.1, begun by version 0.1: their recipes, data and models.

All that a run's folder is recognised by is made of whole numbers here, so that it is the same on every machine:
normally distributed random numbers differ in their last bits between processors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import numpy as np
import pytest
import torch
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.run import live as events
from lora_kiln.training.run.resume import CONTINUE
from lora_kiln.training.run.trainer import Trained, train_lora
from PIL import Image
from torch import nn

import models
from training_runs import at_steps, graph_models

FOLDER = Path(__file__).parent / "data" / "runs-0.1"
"""<name>/<time>/, as below lora_kiln/ in the output folder"""
STOPPED_AT, STEPS = 6, 12
RATE_STEP, RATE_FACTOR = 3, 0.5
"""When this step is done, the learning rate is multiplied by the factor: the step after it is under way by then."""

ADAMW = LoRAConfig.of(
    rank=2, alpha=2.0, learning_rate=1e-2, steps=STEPS, batch_size=2, seed=3, precision="fp32", save_precision="fp32",
    optimizer="adamw", scheduler="cosine", warmup=2, ema_decay=0.9, validation_share=0.3, validation_every=2,
    keep_best=True, checkpoint_minutes=60.0, keep_checkpoints=1, sample_every=4, sample_prompts=("a picture",),
    sample_steps=2, layer_rules="output_blocks.* rank=0\nmiddle_block.* lr=0.5",
)  # fmt: skip
ADAFACTOR = LoRAConfig.of(
    rank=2, alpha=1.0, learning_rate=1e-3, steps=STEPS, batch_size=1, gradient_accumulation=2, seed=4,
    precision="fp32", save_precision="fp32", optimizer="adafactor", scheduler="constant", targets="attention",
    text_encoder_learning_rate=1e-3, checkpoint_minutes=60.0, keep_checkpoints=1, layer_rules="output_blocks.* rank=0",
)  # fmt: skip
RECIPES = {"adamw": ADAMW, "adafactor": ADAFACTOR}
"""Name of the LoRA -> recipe"""
SETTINGS = DatasetSettings(resolution=64, bucket_step=16, shortest_side=32, trigger_word="ohwx", flip=True)
SIZES = ((64, 64), (64, 64), (64, 64), (96, 48), (96, 48), (96, 48))  # width, height


def small_model() -> models.Small:
    """SD1.5, small, its weights drawn as whole numbers."""
    small = models.sd15()
    modules = small.model.model.diffusion_model, small.clip.cond_stage_model, small.vae.first_stage_model
    with torch.inference_mode():
        for seed, module in enumerate(modules):
            _draw_weights(module, seed)
    return small


def _draw_weights(module: nn.Module, seed: int) -> None:
    """Fills a module's weights with multiples of powers of two, of about 1 / sqrt(inputs) in size."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        inputs = parameter[0].numel() if parameter.dim() > 1 else 16
        values = torch.randint(-127, 128, parameter.shape, generator=generator)
        parameter.copy_(values / (128 * 2 ** (inputs.bit_length() // 2)))
    for part in module.modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm) and part.weight is not None:
            part.weight += 1.0


def dataset(folder: Path) -> Dataset:
    """Pictures of random pixels, written into the folder as uncompressed files, the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(5)
    pictures = []
    for number, (width, height) in enumerate(SIZES):
        path = folder / f"{number}.bmp"
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator).to(torch.uint8)
        Image.fromarray(np.asarray(pixels)).save(path)
        pictures.append(Picture(path.name, width, height, f"picture number {number}", path=path))
    return Dataset(tuple(pictures), SETTINGS)


def run(
    monkeypatch: pytest.MonkeyPatch, name: str, recipe: str, data: Dataset, at_stop: Callable[[], object] | None = None
) -> Trained:
    """Trains one of RECIPES on the CPU, on from a run of the same name, and changes its learning rate on the way.

    Args:
        name: of the LoRA.
        recipe: a key of RECIPES.
        at_stop: what happens when step STOPPED_AT is done.
    """

    def change_rate() -> None:
        live = events.live_run(events.histories()[-1]["run"])
        assert live is not None
        live.ask("learning_rate", RATE_FACTOR)

    with monkeypatch.context() as patched:
        # The kind of device is part of what a model is recognised by.
        patched.setattr(comfy.model_management, "cpu_state", comfy.model_management.CPUState.CPU)
        return train_lora(
            graph_models(small_model()),
            data,
            RECIPES[recipe],
            name,
            previous=CONTINUE,
            record=at_steps({RATE_STEP: change_rate, STOPPED_AT: at_stop or (lambda: None)}),
        )
