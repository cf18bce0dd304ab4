"""SimpleTuner: what each setting becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lora_kiln.training import recipes
from lora_kiln.training.recipes.recipe import Recipe

from foreign_recipes import SIMPLE_TUNER, line_of, list_of


def of(**changes: Any) -> Recipe:
    return recipes.read(json.dumps({"model_type": "lora", "model_family": "sdxl", **changes}))


def test_a_config_becomes_a_recipe() -> None:
    recipe = recipes.read(json.dumps(SIMPLE_TUNER))
    adapter, training, run = recipe.config.adapter, recipe.config.optimization, recipe.config.run
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.targets) == ("lora", 64, 64.0, "attention")
    assert (training.optimizer, training.weight_decay, training.optimizer_args) == ("adamw", 0.05, "eps=1e-7")
    assert (training.learning_rate, training.scheduler, training.scheduler_power) == (1e-4, "polynomial", 0.8)
    assert (training.warmup, training.steps, training.batch_size, training.max_grad_norm) == (48.0, 3000, 2, 1.0)
    assert (recipe.config.objective.timestep_sampling, recipe.config.objective.timestep_shift) == ("shift", 3.0)
    assert (run.precision, run.base_precision, run.gradient_checkpointing) == ("bf16", "fp8", True)
    assert (run.seed, run.save_every, run.sample_every, run.sample_prompts) == (42, 250, 50, ("a fox",))
    assert (recipe.dataset["resolution"], recipe.dataset["caption_dropout"]) == (1024, 0.1)


def test_what_is_lost_is_told_apart_from_what_has_no_effect() -> None:
    recipe = recipes.read(json.dumps(SIMPLE_TUNER))
    for key in ("--data_backend_config", "--optimizer", "--surprise"):
        assert list_of(recipe, key) == ["missing"], key
    for key in ("--validation_seed", "--crepa_lambda", "--num_train_epochs"):
        assert list_of(recipe, key) == ["ignored"], key
    assert "unknown" in line_of(recipe, "--surprise")


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({}, "rank", 16),
        ({}, "alpha", 16.0),
        ({}, "dropout", 0.1),
        ({}, "learning_rate", 4e-7),
        ({}, "batch_size", 4),
        ({}, "epochs", 1),
        ({}, "gradient_checkpointing", True),
        ({}, "max_grad_norm", 2.0),
        ({}, "timestep_sampling", "auto"),
        ({}, "noise_offset", 0.0),
        ({"use_dora": "true"}, "adapter", "dora"),
        ({"num_train_epochs": 7, "max_train_steps": 0}, "epochs", 7),
        ({"offset_noise": True}, "noise_offset", 0.1),
        ({"input_perturbation": 0.1}, "ip_noise_gamma", 0.1),
        ({"snr_gamma": 5}, "min_snr_gamma", 5.0),
        ({"loss_type": "huber", "huber_c": 0.2}, "huber_c", 0.2),
        ({"use_ema": True}, "ema_decay", 0.995),
        (
            {"optimizer": "bnb-adamw8bit", "optimizer_beta1": 0.9, "optimizer_beta2": 0.95},
            "optimizer_args",
            "betas=0.9,0.95",
        ),
        ({"optimizer": "optimi-lion"}, "optimizer", "lion"),
        ({"train_text_encoder": True, "text_encoder_lr": 1e-5}, "text_encoder_learning_rate", 1e-5),
        ({"lr_scheduler": "constant", "lr_warmup_steps": 50}, "warmup", 0.0),
        (
            {"model_family": "flux", "flow_schedule_shift": 0, "flow_schedule_auto_shift": True},
            "timestep_sampling",
            "resolution_shift",
        ),
        ({"model_family": "flux", "flow_use_uniform_schedule": True}, "timestep_sampling", "uniform"),
        ({"model_family": "flux", "flow_schedule_shift": 0, "flow_sigmoid_scale": 2.0}, "logit_std", 2.0),
    ],
)
def test_a_setting_becomes_a_field(changes: dict[str, Any], field: str, value: Any) -> None:
    assert of(**changes).config.flat()[field] == value


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "full"}, "model_type"),
        ({"lora_type": "lycoris"}, "lora_type"),
        ({"lora_type": "lycoris", "lycoris_config": "config/lycoris.json"}, "lycoris_config"),
        ({"optimizer": "prodigy", "learning_rate": 1.0}, "optimizer"),
        ({"optimizer": "soap"}, "optimizer"),
        ({"lr_scheduler": "sine", "lr_warmup_steps": 100}, "lr_scheduler"),
        ({"crepa_enabled": True}, "crepa_enabled"),
        ({"flux_lora_target": "mmdit"}, "flux_lora_target"),
        ({"init_lora": "a.safetensors"}, "init_lora"),
        ({"grad_clip_method": "value"}, "grad_clip_method"),
        ({"resolution": 512, "resolution_type": "pixel"}, "resolution_type"),
    ],
)
def test_what_is_not_offered_is_said_to_be_lost(changes: dict[str, Any], key: str) -> None:
    assert list_of(of(**changes), key) == ["missing"]


def test_a_resolution_in_megapixels() -> None:
    assert of(resolution=1.0, resolution_type="area").dataset["resolution"] == 1000


def test_its_lycoris_config_is_the_adapters_part() -> None:
    text = (
        '{"algo": "lokr", "factor": 8, "linear_dim": 12, "linear_alpha": 6, "apply_preset": {"target_module": ["A"]}}'
    )
    recipe = recipes.read(text)
    adapter = recipe.config.adapter
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.lokr_factor) == ("lokr", 12, 6.0, 8)
    assert not recipe.defaults and list_of(recipe, "apply_preset") == ["missing"]
    whole = recipes.read(json.dumps({**json.loads(text), "full_matrix": True}))
    assert whole.config.adapter.rank == 10_000
