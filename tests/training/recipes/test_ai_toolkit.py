"""ai-toolkit: what each setting of a job becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from lora_kiln.training import recipes

from foreign_recipes import JOB, job, list_of


def test_a_job_becomes_a_config() -> None:
    recipe = recipes.read(yaml.safe_dump(JOB))
    assert recipe.source == "ai-toolkit job"
    config = recipe.config
    assert (config.adapter.kind, config.adapter.rank, config.adapter.alpha) == ("lora", 32, 16.0)
    assert (config.adapter.targets, config.adapter.conv_rank, config.adapter.conv_alpha) == (
        "all linear and convolution",
        8,
        4.0,
    )
    assert (config.optimization.batch_size, config.optimization.steps, config.optimization.gradient_accumulation) == (
        2,
        900,
        4,
    )
    assert (config.optimization.learning_rate, config.optimization.text_encoder_learning_rate) == (2e-4, 0.0)
    assert (config.optimization.optimizer, config.optimization.weight_decay, config.optimization.optimizer_args) == (
        "adamw8bit",
        1e-4,
        "eps=1e-6",
    )
    assert (config.objective.timestep_sampling, config.optimization.scheduler, config.objective.loss) == (
        "logit_normal",
        "constant",
        "l2",
    )
    assert (config.optimization.ema_decay, config.run.precision, config.run.save_precision) == (0.98, "bf16", "bf16")
    assert config.run.base_precision == "fp8"
    assert (config.run.save_every, config.run.sample_every, config.run.sample_guidance) == (200, 100, 4.0)
    assert config.run.sample_prompts == ("ohwx in a wood",) and config.run.gradient_checkpointing


def test_a_jobs_data_becomes_load_datasets() -> None:
    recipe = recipes.read(yaml.safe_dump(JOB))
    data = recipe.dataset
    assert (data["resolution"], data["extra_resolutions"], data["trigger_word"]) == (1024, "768, 512", "ohwx")
    assert data["shuffle_tags"] and data["caption_dropout"] == 0.05
    assert list_of(recipe, "datasets[0].flip_y") == list_of(recipe, "datasets[1].num_repeats") == ["missing"]
    assert list_of(recipe, "train.loss_type") == ["missing"]
    assert list_of(recipe, "train.do_fft_loss") == ["ignored"]


@pytest.mark.parametrize(
    ("tables", "field", "value"),
    [
        ({}, "rank", 4),
        ({}, "alpha", 1.0),
        ({}, "learning_rate", 1e-6),
        ({}, "steps", 1000),
        ({}, "save_every", 1000),
        ({}, "gradient_checkpointing", True),
        ({}, "precision", "fp32"),
        ({}, "base_precision", "as loaded"),
        ({"model": {"quantize": True, "qtype": "uint4"}}, "base_precision", "fp8"),
        ({}, "timestep_sampling", "auto"),
        ({"network": {"rank": 8, "linear": 16}}, "rank", 8),
        ({"network": {"alpha": 3}}, "alpha", 3.0),
        ({"network": {"type": "lokr", "lokr_factor": 8}}, "lokr_factor", 8),
        ({"network": {"type": "lokr", "lokr_full_rank": False, "linear": 8}}, "rank", 8),
        ({"train": {"gradient_accumulation_steps": 4, "steps": 1000}}, "steps", 250),
        ({"train": {"gradient_accumulation_steps": 4, "steps": 1000}}, "gradient_accumulation", 4),
        ({"train": {"optimizer": "prodigy", "lr": 1e-4}}, "learning_rate", 1.0),
        ({"train": {"optimizer": "adam"}}, "weight_decay", 0.0),
        ({"train": {"train_text_encoder": True, "lr": 1e-4}}, "text_encoder_learning_rate", 1e-4),
        ({"train": {"lr_scheduler": "constant_with_warmup", "steps": 2000}}, "warmup", 1000.0),
        ({"train": {"lr_scheduler": "cosine_with_restarts"}}, "scheduler_cycles", 1),
        ({"train": {"lr_scheduler": "linear"}}, "scheduler", "constant"),
        ({"train": {"min_snr_gamma": 5}}, "min_snr_gamma", 5.0),
        ({"train": {"noise_offset": 0.02}}, "noise_offset", 0.02),
        ({"train": {"max_denoising_steps": 799}}, "min_timestep", 200),
        ({"train": {"noise_scheduler": "flowmatch", "timestep_type": "linear"}}, "timestep_sampling", "uniform"),
        ({"train": {"noise_scheduler": "flowmatch", "timestep_type": "weighted"}}, "timestep_sampling", "uniform"),
        ({"train": {"disable_sampling": True}, "sample": {"prompts": ["a"]}}, "sample_every", 0),
        ({"sample": {"samples": [{"prompt": "a fox", "width": 512}]}}, "sample_prompts", ("a fox",)),
        ({"training_seed": 9}, "seed", 9),
    ],
)  # fmt: skip
def test_a_jobs_setting_becomes_a_field(tables: dict[str, Any], field: str, value: Any) -> None:
    assert job(**tables).config.flat()[field] == value


def test_a_whole_lokr_factor_is_a_rank_above_every_layer() -> None:
    config = job(network={"type": "lokr"}).config
    assert config.adapter.kind == "lokr" and config.adapter.rank == config.adapter.alpha >= 4096


def test_a_rate_without_a_dot_is_a_number_in_yaml_too() -> None:
    text = "config:\n  process:\n  - train: {lr: 1e-4}\n    network: {linear: 8}\n"
    assert recipes.read(text).config.optimization.learning_rate == 1e-4


def test_a_job_without_network_would_have_trained_the_model() -> None:
    process = {"type": "sd_trainer", "train": {"lr": 1e-5}}
    recipe = recipes.read(json.dumps({"config": {"process": [process, {"type": "other"}]}}))
    assert any("the whole model" in line for line in recipe.missing)
    assert list_of(recipe, "process[1]") == ["missing"]
