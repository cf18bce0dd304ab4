"""kohya_ss' GUI: what each setting becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lora_kiln.training import recipes
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.recipes import kohya_gui

from foreign_recipes import GUI, accounts, gui, list_of, toml


def test_a_gui_file_becomes_a_config() -> None:
    recipe = recipes.read(json.dumps({**GUI, "min_snr_gamma": 0}))
    assert recipe.source == "kohya_ss GUI JSON"
    config = recipe.config
    assert (config.adapter.kind, config.adapter.rank, config.adapter.alpha) == ("loha", 16, 8.0)
    assert config.adapter.targets == "attention and feed-forward" and config.adapter.conv_rank == 0
    assert (config.optimization.optimizer, config.optimization.weight_decay) == ("prodigy", 0.02)
    assert set(config.optimization.optimizer_args.split()) == {"d_coef=2", "decouple=True"}
    assert (config.optimization.learning_rate, config.optimization.text_encoder_learning_rate) == (1.0, 0.0)
    assert (
        config.optimization.scheduler,
        config.optimization.warmup,
        config.optimization.epochs,
        config.optimization.batch_size,
    ) == ("cosine", 0.1, 8, 2)
    assert (config.objective.noise_offset, config.objective.multires_noise_iterations) == (0.0, 6)
    assert config.objective.multires_noise_discount == 0.25
    assert config.run.sample_prompts == ("a fox", "a hare") and config.run.sample_every == 50
    assert (config.run.sample_guidance, config.run.sample_steps) == (5.0, 24)
    assert config.optimization.max_grad_norm == 0.5 and config.objective.debiased_estimation


def test_gui_settings_without_effect_are_told_apart_from_lost_ones() -> None:
    recipe = recipes.read(json.dumps(GUI))
    for key in ("noise_offset", "factor", "guidance_scale", "timestep_sampling", "max_train_steps", "sdxl"):
        assert list_of(recipe, key) == ["ignored"], key
    for key in ("use_tucker", "stop_text_encoder_training", "sample_sampler"):
        assert list_of(recipe, key) == ["missing"], key


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({}, "rank", 8),
        ({}, "optimizer", "adamw8bit"),
        ({}, "learning_rate", 1e-4),
        ({}, "warmup", 0.1),
        ({}, "epochs", 1),
        ({"max_train_steps": 700, "epoch": 3}, "epochs", 0),
        ({"max_train_steps": 700, "epoch": 3}, "steps", 700),
        ({"max_train_epochs": 5, "epoch": 3}, "epochs", 5),
        ({"lr_warmup": 10, "lr_warmup_steps": 25}, "warmup", 25.0),
        ({"unet_lr": 0, "text_encoder_lr": 0, "learning_rate": 3e-4}, "learning_rate", 3e-4),
        ({"unet_lr": 0, "text_encoder_lr": 0, "learning_rate": 3e-4}, "text_encoder_learning_rate", 3e-4),
        ({"unet_lr": 2e-4, "text_encoder_lr": 5e-5}, "text_encoder_learning_rate", 5e-5),
        ({"LoRA_type": "Kohya LoCon", "conv_dim": 8, "conv_alpha": 4}, "conv_rank", 8),
        ({"conv_dim": 8}, "targets", "attention and feed-forward"),
        ({"LoRA_type": "LyCORIS/LoKr", "factor": 4}, "lokr_factor", 4),
        ({"LoRA_type": "LyCORIS/LoCon", "dora_wd": True}, "adapter", "dora"),
        ({"LoRA_type": "LyCORIS/Diag-OFT", "network_dim": 12}, "rank", 12),
        ({"LoRA_type": "Kohya LoHa"}, "adapter", "loha"),
        ({"noise_offset_type": "Original", "noise_offset": "0.04"}, "noise_offset", 0.04),
        ({"seed": "1234"}, "seed", 1234),
        ({"mixed_precision": "no"}, "precision", "fp32"),
        ({"mixed_precision": "fp16"}, "precision", "fp16"),
        ({"max_timestep": 0}, "max_timestep", 1000),
        (
            {"LoRA_type": "Flux1", "flux1_checkbox": True, "timestep_sampling": "shift", "discrete_flow_shift": 3.1},
            "timestep_shift",
            3.1,
        ),
        (
            {"LoRA_type": "Anima", "anima_checkbox": True, "anima_timestep_sampling": "sigmoid"},
            "timestep_sampling",
            "logit_normal",
        ),
    ],
)
def test_a_gui_setting_becomes_a_field(changes: dict[str, Any], field: str, value: Any) -> None:
    assert gui(**changes).config.flat()[field] == value


@pytest.mark.parametrize("kind", [*kohya_gui.TYPES, "of tomorrow"])
def test_every_network_of_the_gui_accounts_for_all_its_settings(kind: str) -> None:
    settings = {"LoRA_type": kind, "LyCORIS_preset": "full", **dict.fromkeys(kohya_gui.ARGUMENTS - {"preset"}, 1)}
    settings |= {"rank_dropout": 0.1, "module_dropout": 0.1}
    recipe = recipes.read(json.dumps(settings))
    assert sorted(key for listed in accounts(recipe).values() for key in listed) == sorted(settings)
    assert isinstance(recipe.config, LoRAConfig)


def test_training_the_text_encoder_alone_is_said_to_be_lost() -> None:
    recipe = gui(unet_lr=0, text_encoder_lr=1e-5)
    assert list_of(recipe, "unet_lr") == ["missing"]


def test_the_file_of_another_tab_is_said_to_train_something_else() -> None:
    recipe = recipes.read(json.dumps({"max_resolution": "512,512", "learning_rate": 1e-5}))
    assert any("another tab" in line for line in recipe.missing)
    assert not any("another tab" in line for line in gui().missing)


def test_other_lycoris_networks_are_said_to_be_lost() -> None:
    recipe = gui(LoRA_type="LyCORIS/GLoRA")
    assert recipe.config.adapter.kind == "lora" and list_of(recipe, "LoRA_type") == ["missing"]


def test_the_toml_that_the_gui_writes_for_sd_scripts_is_sd_scripts() -> None:
    recipe = toml(
        'network_module = "lycoris.kohya"',
        'network_args = ["preset=full", "conv_dim=4", "conv_alpha=1", "algo=loha"]',
        "network_dim = 16",
        "network_alpha = 8",
        'noise_offset_type = "Original"',
        "max_train_steps = 1600",
        "lr_warmup_steps = 160",
        'resolution = "1024,1024"',
    )
    assert recipe.source == "sd-scripts TOML"
    adapter = recipe.config.adapter
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.conv_rank) == ("loha", 16, 8.0, 4)


@pytest.mark.parametrize("mark", ["lr_warmup = 10", 'max_resolution = "512,512"'])
def test_a_table_with_a_network_module_is_not_the_guis(mark: str) -> None:
    recipe = toml(mark, 'network_module = "networks.loha"', "network_dim = 16")
    assert (recipe.source, recipe.config.adapter.kind) == ("sd-scripts TOML", "loha")
