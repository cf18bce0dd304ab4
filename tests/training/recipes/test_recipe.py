"""What a recipe came to: its config, its report, and what is changed by hand."""

from __future__ import annotations

import sys

import pytest
from lora_kiln.training import recipes
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig

from foreign_recipes import TOML, toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_contradictions_name_the_files_keys() -> None:
    recipe = toml("min_snr_gamma = 5", "debiased_estimation_loss = true", "network_dim = 0")
    with pytest.raises(InputError) as caught:
        _ = recipe.config
    assert len(caught.value.problems) == 2
    assert any("In the file: network_dim" in problem for problem in caught.value.problems)
    assert any("debiased_estimation_loss" in problem for problem in caught.value.problems)


def test_a_report_names_every_line() -> None:
    recipe = recipes.read(TOML)
    report = recipe.report()
    for line in (*recipe.carried, *recipe.ignored, *recipe.missing, *recipe.defaults):
        assert line in report
    assert report.index("Not carried over\n") < report.index("Carried over\n")
    assert "resolution = 768" in report


def test_changes_by_hand_count_and_are_listed() -> None:
    recipe = toml("network_dim = 8", "learning_rate = 3e-4", "max_train_steps = 900")
    changed = recipe.with_changes({"steps": 50, "learning_rate": 1e-4, "ema_decay": 0.9})
    assert changed.config == LoRAConfig.of(**{**recipe.values, "steps": 50, "learning_rate": 1e-4, "ema_decay": 0.9})
    report = changed.report()
    section = report.split("Changed by hand\n")[1].split("\n\n")[0].splitlines()
    assert section == ["- steps = 50 (was 900)", "- learning_rate = 0.0001 (was 0.0003)", "- ema_decay = 0.9 (was 0)"]
    assert "Changed by hand" not in recipe.report()


def test_steps_by_hand_count_before_the_files_epochs() -> None:
    recipe = toml("max_train_epochs = 12").with_changes({"steps": 50})
    assert (recipe.config.optimization.steps, recipe.config.optimization.epochs) == (50, 0)
    assert "epochs = 0 (was 12)" in recipe.report()
    assert toml("max_train_epochs = 12").with_changes({"steps": 50, "epochs": 3}).config.optimization.epochs == 3


def test_a_contradiction_with_a_change_does_not_blame_the_file_for_it() -> None:
    recipe = toml("min_snr_gamma = 5").with_changes({"debiased_estimation": True})
    with pytest.raises(InputError, match="In the file: min_snr_gamma\\.$"):
        _ = recipe.config


def test_what_load_dataset_does_not_set_is_shown_as_a_settings_file() -> None:
    report = toml("flip_aug = true", 'caption_prefix = "a \\"photo\\" of"').report()
    sections = dict(section.split("\n", 1) for section in report.split("\n\n")[1:])
    assert "- flip = true" in sections["To be set in Load Dataset"]
    assert "caption_prefix" not in sections["To be set in Load Dataset"]
    lines = sections["To be written into dataset.toml in the pictures' folder"].replace("- ", "")
    assert tomllib.loads(lines) == {"caption_prefix": 'a "photo" of'}
