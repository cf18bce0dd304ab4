"""OneTrainer: what each setting becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lora_kiln.training import recipes
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.recipes.recipe import Recipe

from foreign_recipes import ONE_TRAINER, line_of, list_of

FLUX = {"model_type": "FLUX_DEV_1", "transformer": {"train": True}}


def of(**changes: Any) -> Recipe:
    return recipes.read(json.dumps({"training_method": "LORA", **changes}))


def test_a_config_becomes_a_recipe() -> None:
    recipe = recipes.read(json.dumps(ONE_TRAINER))
    adapter, training, run = recipe.config.adapter, recipe.config.optimization, recipe.config.run
    assert (adapter.kind, adapter.rank, adapter.alpha) == ("dora", 32, 16.0)
    assert adapter.targets == "all linear and convolution"
    assert (training.optimizer, training.weight_decay, training.optimizer_args) == ("adamw", 0.02, "betas=0.9,0.99")
    assert (training.learning_rate, training.text_encoder_learning_rate) == (2e-4, 0.0)
    assert (training.scheduler, training.warmup, training.epochs) == ("cosine", 75.0, 40)
    assert (training.batch_size, training.gradient_accumulation) == (3, 2)
    assert (recipe.config.objective.min_snr_gamma, recipe.config.objective.noise_offset) == (5.0, 0.05)
    assert (run.precision, run.save_precision, run.base_precision) == ("bf16", "bf16", "fp8")
    assert run.gradient_checkpointing and run.sample_prompts == ("a fox",)
    assert (run.sample_every, run.sample_guidance, run.sample_steps) == (50, 5.0, 24)
    data = {key: recipe.dataset[key] for key in ("resolution", "repeats", "flip", "shuffle_tags", "keep_tokens")}
    assert data == {"resolution": 1024, "repeats": 3, "flip": True, "shuffle_tags": True, "keep_tokens": 2}
    assert recipe.dataset["masked_loss"] and recipe.dataset["unmasked_weight"] == 0.1


def test_what_is_lost_is_told_apart_from_what_has_no_effect() -> None:
    recipe = recipes.read(json.dumps(ONE_TRAINER))
    for key in ("save_every", "concepts[1].balancing"):
        assert list_of(recipe, key) == ["missing"], key
    for key in ("prior.learning_rate", "lokr_dim", "optimizer.fused", "optimizer_defaults.PRODIGY.d_coef"):
        assert list_of(recipe, key) == ["ignored"], key
    assert "in Import Recipe's changes set save_every" in line_of(recipe, "save_every")


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({}, "rank", 16),
        ({}, "alpha", 1.0),
        ({}, "learning_rate", 3e-6),
        ({}, "epochs", 100),
        ({}, "warmup", 200.0),
        ({}, "precision", "fp16"),
        ({}, "save_precision", "fp32"),
        ({}, "gradient_checkpointing", True),
        ({}, "text_encoder_learning_rate", 3e-6),
        ({"peft_type": "LOHA", "lora_rank": 8}, "adapter", "loha"),
        ({"peft_type": "LOKR", "lokr_dim": 8}, "rank", 8),
        ({"peft_type": "LOKR", "lokr_decompose_factor": 4}, "lokr_factor", 4),
        ({"peft_type": "LOKR", "lokr_full_matrix": True}, "rank", 10_000),
        ({"peft_type": "OFT_2", "oft_block_size": 64}, "rank", 64),
        ({"dropout_probability": 0.1}, "dropout", 0.1),
        ({"layer_filter_preset": "attn-only", "layer_filter": "attn"}, "targets", "attention"),
        ({"lora_layer_preset": "attn-mlp", "lora_layers": "attentions"}, "targets", "attention and feed-forward"),
        ({"unet": {"learning_rate": 1e-4}, "learning_rate": 3e-4}, "learning_rate", 1e-4),
        ({"text_encoder": {"train": True, "learning_rate": 1e-5}}, "text_encoder_learning_rate", 1e-5),
        ({"text_encoder": {"train": False}}, "text_encoder_learning_rate", 0.0),
        (
            {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "text_encoder": {"train": False}},
            "text_encoder_learning_rate",
            0,
        ),
        ({"learning_rate_warmup_steps": 0.1}, "warmup", 0.1),
        ({"learning_rate_warmup_steps": 9, "gradient_accumulation_steps": 2}, "warmup", 5.0),
        ({"learning_rate_scheduler": "COSINE_WITH_HARD_RESTARTS", "learning_rate_cycles": 3.0}, "scheduler_cycles", 3),
        ({"learning_rate_scheduler": "REX"}, "scheduler", "rex"),
        ({"learning_rate_scaler": "BOTH", "batch_size": 2, "gradient_accumulation_steps": 2}, "learning_rate", 6e-6),
        ({"clip_grad_norm": None}, "max_grad_norm", 0.0),
        ({"gradient_checkpointing": "OFF"}, "gradient_checkpointing", False),
        ({"gradient_checkpointing": "CPU_OFFLOADED"}, "gradient_checkpointing", True),
        ({"unet": {"gradient_checkpointing": False}}, "gradient_checkpointing", False),
        ({"ema": "GPU", "ema_decay": 0.9, "ema_update_step_interval": 1}, "ema_decay", 0.9),
        ({"ema": "CPU", "ema_decay": 0.59049}, "ema_decay", 0.9),
        ({"optimizer": {"optimizer": "PRODIGY"}, "learning_rate": 1.0}, "optimizer", "prodigy"),
        ({"optimizer": {"optimizer": "LION_8BIT", "weight_decay": 0.1}}, "weight_decay", 0.1),
        ({"optimizer": "ADAFACTOR", "optimizer_weight_decay": 0.01}, "weight_decay", 0.01),
        (
            {"optimizer": {"optimizer": "SCHEDULE_FREE_ADAMW"}, "learning_rate_scheduler": "COSINE"},
            "scheduler",
            "constant",
        ),
        ({"loss_weight_fn": "DEBIASED_ESTIMATION"}, "debiased_estimation", True),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma", 5.0),
        ({"mse_strength": 0.0, "huber_strength": 1.0, "huber_delta": 0.2}, "huber_c", 0.2),
        ({"rescale_noise_scheduler_to_zero_terminal_snr": True}, "zero_terminal_snr", True),
        ({"min_noising_strength": 0.1}, "min_timestep", 100),
        ({"max_noising_strength": 0.5}, "max_timestep", 500),
        ({**FLUX}, "text_encoder_learning_rate", 3e-6),
        ({**FLUX, "timestep_distribution": "LOGIT_NORMAL"}, "timestep_sampling", "logit_normal"),
        ({**FLUX, "timestep_distribution": "LOGIT_NORMAL", "timestep_shift": 3.0}, "timestep_shift", 3.0),
        (
            {**FLUX, "timestep_distribution": "LOGIT_NORMAL", "dynamic_timestep_shifting": True},
            "timestep_sampling",
            "resolution_shift",
        ),
        (
            {**FLUX, "timestep_distribution": "LOGIT_NORMAL", "noising_weight": 0.5, "noising_bias": 0.2},
            "logit_std",
            1.5,
        ),
        ({"model_type": "QWEN", "text_encoder": {"train": False}}, "text_encoder_learning_rate", 0.0),
        ({"save_every": 300, "save_every_unit": "STEP", "gradient_accumulation_steps": 3}, "save_every", 100),
    ],
)
def test_a_setting_becomes_a_field(changes: dict[str, Any], field: str, value: Any) -> None:
    assert of(**changes).config.flat()[field] == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training_method": "FINE_TUNE"}, "training_method"),
        ({"peft_type": "LORA_OF_TOMORROW"}, "peft_type"),
        ({"layer_filter_preset": "custom", "layer_filter": "attn,proj_in"}, "layer_filter"),
        ({"layer_filter_preset": "blocks"}, "layer_filter_preset"),
        ({"learning_rate_scheduler": "CUSTOM"}, "learning_rate_scheduler"),
        ({"learning_rate_min_factor": 0.1}, "learning_rate_min_factor"),
        ({"loss_weight_fn": "P2"}, "loss_weight_fn"),
        ({"mae_strength": 0.5}, "mae_strength"),
        ({"loss_scaler": "BOTH"}, "loss_scaler"),
        ({"timestep_distribution": "BETA"}, "timestep_distribution"),
        ({**FLUX, "timestep_shift": 3.0, "min_noising_strength": 0.2}, "min_noising_strength"),
        ({"perturbation_noise_weight": 0.1}, "perturbation_noise_weight"),
        ({"lora_weight_dtype": "BFLOAT_16"}, "lora_weight_dtype"),
        ({"additional_embeddings": [{"placeholder": "ohwx"}]}, "additional_embeddings"),
        (
            {"text_encoder": {"train": True, "stop_training_after": 10, "stop_training_after_unit": "EPOCH"}},
            "text_encoder.stop_training_after",
        ),
        ({"model_type": "Z_IMAGE", "text_encoder": {"train": True}}, "text_encoder.train"),
        ({"optimizer": {"optimizer": "CAME"}}, "optimizer.optimizer"),
    ],
)
def test_what_is_not_offered_is_said_to_be_lost(changes: dict[str, Any], key: str) -> None:
    recipe = of(**changes)
    assert list_of(recipe, key) == ["missing"]
    assert recipe.config


def test_what_every_saved_file_holds_for_other_models_is_no_loss() -> None:
    other = {
        "text_encoder_3": {"train": True},
        "prior": {"train": True},
        "validate_after": 1,
        "lokr_dora_on_output": True,
    }
    recipe = of(model_type="STABLE_DIFFUSION_XL_10_BASE", optimizer={"optimizer": "ADAMW", "d_limiter": True}, **other)
    for key in ("text_encoder_3.train", "prior.train", "validate_after", "lokr_dora_on_output", "optimizer.d_limiter"):
        assert list_of(recipe, key) == ["ignored"], key
    assert list_of(of(model_type="FLUX_DEV_1", text_encoder_2={"train": True}), "text_encoder_2.train") == ["missing"]


def test_losses_by_a_default_are_said_too() -> None:
    lines = "\n".join(of(model_type="STABLE_DIFFUSION_15").missing)
    assert "text_encoder.stop_training_after (absent, so 30)" in lines
    frozen = of(unet={"train": False})
    assert any(line.startswith("unet.train: ") for line in frozen.missing)


@pytest.mark.parametrize(
    ("text", "largest", "extra"),
    [("512", 512, ""), ("512, 768", 768, "512"), ("1024x256", 512, ""), ("640.0", 640, "")],
)
def test_a_resolution_in_every_spelling(text: str, largest: int, extra: str) -> None:
    dataset = of(resolution=text).dataset
    assert (dataset["resolution"], dataset["extra_resolutions"]) == (largest, extra)


@pytest.mark.parametrize("value", ["wide", "512x", "1x2x3", "-5", ""])
def test_a_resolution_that_is_none_is_refused(value: str) -> None:
    if value:
        with pytest.raises(InputError, match="resolution"):
            of(resolution=value)
    else:
        assert of(resolution=value).dataset["resolution"] == 512
