"""Whole runs on a device without float64 and without matrix factorisations, such as Apple's GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lora_kiln.training import host
from lora_kiln.training.config import ADAPTERS, OPTIMIZERS
from lora_kiln.training.learning.prediction import has_float64

import models
from device_without_float64 import DEVICE, WithoutFloat64
from training_runs import STEPS, changed, run

pytestmark = pytest.mark.usefixtures("lora_folder")
BUILT_IN = [name for name, kind in OPTIMIZERS.items() if kind.module.split(".")[0] != "bitsandbytes"]
EVERYTHING = dict(
    validation_share=0.3, validation_every=2, keep_best=True, sample_every=STEPS, sample_prompts=("a",), sample_steps=1,
    text_encoder_learning_rate=1e-3, ema_decay=0.9, loss="huber", huber_schedule="snr", checkpoint_minutes=0.0,
    multires_noise_iterations=2, ip_noise_gamma=0.1,
)  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[models.Small]:
    """A model that computes there. The stand-in has no memory in which the host could make room."""
    monkeypatch.setattr(host, "make_room", lambda device: None)
    small = models.sd15()
    small.model.load_device = DEVICE
    has_float64.cache_clear()
    with WithoutFloat64():
        yield small
    has_float64.cache_clear()


def pairs() -> list[dict[str, Any]]:
    """Recipes in which each adapter and each optimizer is there at least once."""
    number = max(len(ADAPTERS), len(BUILT_IN))
    kinds = [(list(ADAPTERS)[n % len(ADAPTERS)], BUILT_IN[n % len(BUILT_IN)]) for n in range(number)]
    return [dict(adapter=adapter, optimizer=optimizer) for adapter, optimizer in kinds]


@pytest.mark.parametrize(
    "values", [EVERYTHING, dict(precision="fp16", min_snr_gamma=5.0), *pairs()], ids=lambda values: " ".join(values)
)
def test_a_run_trains_to_its_end_and_tells_all_of_it(values, small):
    whole = values is EVERYTHING
    rate = 1.0 if OPTIMIZERS[values.get("optimizer", "adamw")].finds_rate else 1e-4
    recipe = changed(**{"steps": STEPS if whole else 1, "batch_size": 1, "learning_rate": rate, **values})
    trained = run(recipe, small=small)
    assert len(trained.losses) == recipe.optimization.steps and trained.lora
    assert "incomplete" not in trained.report
    assert len(trained.samples) == (2 if whole else 0)
