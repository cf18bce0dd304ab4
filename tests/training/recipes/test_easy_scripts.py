"""LoRA_Easy_Training_Scripts: its nested TOML by the rules of sd-scripts, which it starts."""

from __future__ import annotations

import pytest
from lora_kiln.training import recipes

from foreign_recipes import EASY, list_of

FLAT = """
network_module = "lycoris.kohya"
network_args = ["algo=loha", "conv_dim=8", "conv_alpha=4.0"]
network_dim = 24
network_alpha = 12.0
network_train_unet_only = true
max_train_epochs = 20
gradient_accumulation_steps = 4
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
lr_scheduler = "cosine"
learning_rate = 7e-5
lr_warmup_steps = 0.15
train_batch_size = 2
resolution = 1024
dataset_repeats = 4
shuffle_caption = true
keep_tokens = 1
"""


def test_the_nested_file_says_what_the_trainers_own_file_would() -> None:
    nested, flat = recipes.read(EASY), recipes.read(FLAT)
    assert nested.values == flat.values and nested.dataset == flat.dataset
    assert (nested.config.adapter.kind, nested.config.adapter.rank) == ("loha", 24)


def test_a_second_folder_and_unknown_keys_are_listed() -> None:
    recipe = recipes.read(EASY)
    for key in ("subsets[1].num_repeats", "general_args.args.surprise", "saving_args.args.save_every_n_epochs"):
        assert list_of(recipe, key) == ["missing"], key
    for key in ("subsets[0].name", "subsets[1].image_dir", "general_args.args.sdxl", "train_mode.train_mode"):
        assert list_of(recipe, key) == ["ignored"], key


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        ("[network_args.args.network_args]\nunit = 4", "adapter", "lora"),
        ("[network_args.args]\nnetwork_dim = 8\nnetwork_alpha = 4", "targets", "attention and feed-forward"),
        ("[flux_args.args]\nguidance_scale = 1.0\ntimestep_sampling = 'shift'", "timestep_sampling", "shift"),
        (
            "[optimizer_args.args]\nlr_scheduler = 'cosine'\nlr_scheduler_num_cycles = 2\nlr_scheduler_type = "
            "'LoraEasyCustomOptimizer.CosineAnnealingWarmRestarts.CosineAnnealingWarmRestarts'",
            "scheduler_cycles",
            2,
        ),
        ("[optimizer_args.args]\nlr_scheduler_type = 'X.RexAnnealingWarmRestarts'", "scheduler", "rex"),
        ("[optimizer_args.args]\nmax_grad_norm = 0.0", "max_grad_norm", 1.0),
    ],
)
def test_a_setting_becomes_a_field(lines: str, field: str, value: object) -> None:
    assert recipes.read(lines).config.flat()[field] == value


def test_textual_inversion_is_said_to_be_lost() -> None:
    recipe = recipes.read('[train_mode]\ntrain_mode = "textual_inversion"\n[general_args.args]\nseed = 1')
    assert list_of(recipe, "train_mode.train_mode") == ["missing"]
