"""The account of a file's keys: what it reads, and what it shows."""

from __future__ import annotations

import json

import pytest
from lora_kiln.training import recipes
from lora_kiln.training.basics.errors import InputError

from foreign_recipes import GUI, TOML, toml


def test_values_of_the_wrong_kind_are_named_all_at_once() -> None:
    lines = ['network_dim = "many"', "train_batch_size = 1.5", 'flip_aug = "maybe"', "lr_scheduler = 3"]
    with pytest.raises(InputError) as caught:
        toml(*lines, "noise_offset = nan", "seed = [1]", 'resolution = "a,b"', 'optimizer_args = ["betas=x"]')
    keys = ("network_dim", "train_batch_size", "flip_aug", "lr_scheduler", "noise_offset", "seed", "resolution")
    for key in (*keys, "optimizer_args.betas"):
        assert any(problem.startswith(f"{key} is ") for problem in caught.value.problems), key


def test_a_hostile_key_stays_on_one_short_line() -> None:
    recipe = recipes.read(json.dumps({"LoRA_type": "Standard", "a\nb\x1b[31m" + "c" * 500: "d\n" * 500}))
    line = next(line for line in recipe.missing if line.startswith("a b"))
    assert "\n" not in line and "\x1b" not in line and len(line) < 300


def test_secrets_are_not_shown() -> None:
    report = recipes.read(TOML).report() + recipes.read(json.dumps(GUI)).report()
    assert "k-0123456789" not in report and "hf_secret" not in report
    assert "wandb_api_key = (hidden)" in report and "huggingface_token = (hidden)" in report
