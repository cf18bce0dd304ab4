"""The metadata of LoRA files, of other trainers and our own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lora_kiln.training import recipes
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import FIELDS, TARGETS, LoRAConfig
from lora_kiln.training.lora.metadata import DataFacts, RunFacts, lora_metadata
from lora_kiln.training.recipes.recipe import Recipe

from foreign_recipes import METADATA


def test_metadata_becomes_a_config() -> None:
    recipe = recipes.read_metadata(METADATA, ["lora_unet_a.lokr_w1"])
    config = recipe.config
    assert (config.adapter.kind, config.adapter.rank, config.adapter.alpha, config.adapter.lokr_factor) == (
        "lokr",
        16,
        1.0,
        8,
    )
    assert (config.adapter.targets, config.adapter.conv_rank) == ("all linear and convolution", 16)
    assert (config.optimization.optimizer, config.optimization.weight_decay, config.optimization.optimizer_args) == (
        "adamw8bit",
        0.05,
        "betas=0.9,0.95",
    )
    assert (config.optimization.learning_rate, config.optimization.text_encoder_learning_rate) == (3e-4, 0.0)
    assert (config.optimization.scheduler, config.optimization.warmup, config.optimization.steps) == (
        "constant",
        100.0,
        2000,
    )
    assert (config.optimization.batch_size, config.run.seed, config.run.precision) == (4, 11, "bf16")
    assert config.objective.debiased_estimation and config.objective.min_snr_gamma == 0.0
    assert recipe.dataset["resolution"] == 768 and recipe.dataset["trigger_word"] == "ohwx"
    assert recipe.defaults == ()


def test_layers_of_a_text_encoder_say_that_it_was_trained() -> None:
    layers = ["lora_unet_a.lora_down.weight", "lora_te1_b.lora_down.weight"]
    assert recipes.read_metadata(METADATA, layers).config.optimization.text_encoder_learning_rate == 3e-4


def test_a_pasted_header_is_read_with_its_layers() -> None:
    header = {"__metadata__": METADATA, "lora_unet_a.lora_down.weight": {"dtype": "F16"}}
    assert recipes.read(json.dumps(header)).config.optimization.text_encoder_learning_rate == 0.0


def test_the_range_of_timesteps_comes_from_modelspec() -> None:
    config = recipes.read_metadata({"ss_network_dim": "4", "modelspec.timestep_range": "100,899"}).config
    assert (config.objective.min_timestep, config.objective.max_timestep) == (100, 900)


def test_metadata_without_a_training_is_refused() -> None:
    with pytest.raises(InputError, match="no key begins with ss_"):
        recipes.read_metadata({"format": "pt"})


def test_ranks_that_differ_from_layer_to_layer_are_said_to_be_lost() -> None:
    recipe = recipes.read_metadata({**METADATA, "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"})
    assert (
        recipe.config.adapter.rank == LoRAConfig().adapter.rank
        and recipe.config.adapter.alpha == LoRAConfig().adapter.alpha
    )
    assert sum("Dynamic" in line for line in recipe.missing) == 2


# ---------------------------------------------------------------- our own files

OUTPUT = ("save_every", "sample_every", "sample_prompts", "sample_steps", "sample_guidance")
"""Fields that shape no number of the LoRA: no file says them."""
CHANGES: dict[str, dict[str, Any]] = {
    "adapter": {"adapter": "dora"},
    "rank": {"rank": 8},
    "alpha": {"alpha": 4.5},
    "conv_rank": {"conv_rank": 4},
    "conv_alpha": {"conv_alpha": 2.0},
    "rslora": {"rslora": True},
    "lokr_factor": {"adapter": "lokr", "lokr_factor": 4},
    "targets": {"targets": "SDXL style blocks"},
    "layer_rules": {"layer_rules": "*attn2* rank=4 alpha=2\n*to_q* lr=0.5"},
    "dropout": {"dropout": 0.1},
    "rank_dropout": {"rank_dropout": 0.2},
    "module_dropout": {"module_dropout": 0.3},
    "text_encoder_learning_rate": {"text_encoder_learning_rate": 1.25e-5},
    "optimizer": {"optimizer": "schedule_free", "scheduler": "constant"},
    "optimizer_args": {"optimizer_args": "betas=0.9,0.99 eps=1e-06"},
    "learning_rate": {"learning_rate": 1.23456789e-4},
    "weight_decay": {"weight_decay": 0.0123456789},
    "scheduler": {"scheduler": "rex"},
    "warmup": {"warmup": 0.0333},
    "scheduler_cycles": {"scheduler": "cosine_with_restarts", "scheduler_cycles": 5},
    "scheduler_power": {"scheduler": "polynomial", "scheduler_power": 1.5},
    "steps": {"steps": 40},
    "epochs": {"epochs": 3},
    "batch_size": {"batch_size": 3},
    "gradient_accumulation": {"gradient_accumulation": 2},
    "max_grad_norm": {"max_grad_norm": 0.0},
    "min_snr_gamma": {"min_snr_gamma": 5.0},
    "debiased_estimation": {"debiased_estimation": True},
    "loss": {"loss": "smooth_l1"},
    "huber_c": {"loss": "huber", "huber_c": 0.3},
    "huber_schedule": {"loss": "huber", "huber_schedule": "constant"},
    "noise_offset": {"noise_offset": 0.05},
    "multires_noise_iterations": {"multires_noise_iterations": 6},
    "multires_noise_discount": {"multires_noise_iterations": 6, "multires_noise_discount": 0.4},
    "ip_noise_gamma": {"ip_noise_gamma": 0.1},
    "zero_terminal_snr": {"zero_terminal_snr": True},
    "min_timestep": {"min_timestep": 100},
    "max_timestep": {"max_timestep": 900},
    "timestep_sampling": {"timestep_sampling": "resolution_shift"},
    "logit_mean": {"timestep_sampling": "logit_normal", "logit_mean": 0.5},
    "logit_std": {"timestep_sampling": "shift", "logit_std": 1.5},
    "timestep_shift": {"timestep_shift": 3.1},
    "ema_decay": {"ema_decay": 0.99},
    "precision": {"precision": "fp32"},
    "base_precision": {"base_precision": "fp8"},
    "save_precision": {"save_precision": "bf16"},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "seed": {"seed": 5},
    "deterministic": {"deterministic": True},
    "cuda_graphs": {"cuda_graphs": False},
    "fit_memory": {"fit_memory": False},
    "validation_share": {"validation_share": 0.1},
    "validation_every": {"validation_every": 7},
    "validation_patience": {"validation_share": 0.1, "validation_patience": 3},
    "keep_best": {"validation_share": 0.1, "keep_best": True},
    "on_divergence": {"on_divergence": "step back"},
    "checkpoint_minutes": {"checkpoint_minutes": 1.0},
    "keep_checkpoints": {"keep_checkpoints": 4},
}
KEPT = [name for name in FIELDS if name not in OUTPUT]
MODELS = {"sdxl": ("sdxl_base_v1-0", "eps"), "flux": ("flux1", "flow"), "sd3": ("sd3_m", "flow")}


def read_back(config: LoRAConfig, model: str) -> Recipe:
    version, prediction = MODELS[model]
    run = RunFacts("fox", version, model, prediction, 9, config.optimization.steps, 1, 2, 0.0, 1.0, precision="bf16")
    data = DataFacts((), 768, {(768, 768): 4}, "ohwx", flip=True, keep_tokens=2, shuffle_tags=True)
    return recipes.read_metadata(lora_metadata(config, run, data))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", KEPT)
def test_our_own_files_give_every_field_back(name: str, model: str) -> None:
    config = LoRAConfig.of(**CHANGES[name])
    assert config.flat()[name] != LoRAConfig().flat()[name]
    recipe = read_back(config, model)
    assert {each: recipe.config.flat()[each] for each in KEPT} == {each: config.flat()[each] for each in KEPT}
    assert recipe.missing == ()


@pytest.mark.parametrize("adapter", ["lora", "dora", "loha", "lokr", "oft"])
@pytest.mark.parametrize("targets", TARGETS)
def test_our_own_files_of_every_kind_give_their_recipe_back(adapter: str, targets: str) -> None:
    config = LoRAConfig.of(adapter=adapter, targets=targets, rank=8, alpha=2.0)
    recipe = read_back(config, "sdxl")
    assert recipe.config == config and recipe.missing == ()
    assert (recipe.dataset["resolution"], recipe.dataset["trigger_word"]) == (768, "ohwx")
    assert recipe.dataset["flip"] and recipe.dataset["shuffle_tags"] and recipe.dataset["keep_tokens"] == 2
