"""Whose file it is: told by what only that trainer's files have, and refused by name where nothing reads it."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from lora_kiln.training import recipes
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.recipes.dialects import DIALECTS, OTHERS
from lora_kiln.training.recipes.parsing import parse

from foreign_recipes import (
    EASY,
    GUI,
    JOB,
    METADATA,
    MUSUBI,
    MUSUBI_DATA,
    ONE_TRAINER,
    PIPE,
    PIPE_DATA,
    SIMPLE_TUNER,
    TOML,
    list_of,
    toml,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LYCORIS = {"algo": "lokr", "factor": 16, "linear_dim": 10000, "linear_alpha": 1, "apply_preset": {}}
FILES = {
    "metadata of a LoRA": [json.dumps(METADATA), json.dumps({"__metadata__": METADATA, "lora_unet_a.alpha": {}})],
    "ai-toolkit job": [yaml.safe_dump(JOB), json.dumps(JOB)],
    "OneTrainer JSON": [
        json.dumps(ONE_TRAINER),
        json.dumps(
            {"model_type": "STABLE_DIFFUSION_15", "training_method": "LORA", "lora_rank": 32, "resolution": "512"}
        ),
    ],
    "SimpleTuner JSON": [
        json.dumps(SIMPLE_TUNER),
        json.dumps({key.removeprefix("--"): value for key, value in SIMPLE_TUNER.items()}),
        json.dumps({"_metadata": {"name": "fox"}, "config": SIMPLE_TUNER}),
    ],
    "LyCORIS config of SimpleTuner": [json.dumps(LYCORIS)],
    "LoRA_Easy_Training_Scripts TOML": [EASY],
    "musubi-tuner TOML": [MUSUBI, 'network_module = "networks.lora_wan"'],
    "musubi-tuner dataset file": [MUSUBI_DATA],
    "diffusion-pipe TOML": [PIPE],
    "diffusion-pipe dataset file": [PIPE_DATA],
    "kohya_ss GUI JSON": [json.dumps(GUI)],
    "sd-scripts TOML": [TOML, "network_dim = 8", json.dumps(tomllib.loads(TOML))],
}


@pytest.mark.parametrize(("source", "text"), [(source, text) for source, texts in FILES.items() for text in texts])
def test_a_file_is_read_by_its_own_trainers_rules(source: str, text: str) -> None:
    assert recipes.read(text).source == source


def test_only_one_row_recognises_a_file_but_for_relatives_of_sd_scripts() -> None:
    relatives = {"a musubi-tuner TOML", "a TOML of LoRA_Easy_Training_Scripts", "a kohya_ss JSON of its LoRA tab"}
    for texts in FILES.values():
        for text in texts:
            _, content = parse(text)
            rows = [dialect.name for dialect in (*DIALECTS, *OTHERS) if dialect.recognises(content)]
            assert len(rows) == 1 or (len(rows) == 2 and rows[0] in relatives and rows[1] == "an sd-scripts TOML"), rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"learning_rate": 1e-4, "resolution": 512, "seed": 7, "rank": 32}, "learning_rate, resolution, seed, rank"),
        ({f"key_{number}": 1 for number in range(9)}, "key_4, ...."),
        ({"learning_rate": 1e-4, "max_train_steps": 900, "train_batch_size": 2, "output_dir": "x"}, "learning_rate"),
        ({"nodes": [], "links": []}, "a ComfyUI workflow"),
        ({"peft_type": "LORA", "target_modules": ["to_q"], "r": 8}, "a LoRA's adapter_config.json"),
        ({"_class_name": "UNet2DConditionModel"}, "a model's config.json"),
        ({"data_root": "/data", "cond_dropout": 0.04, "batch_size": 7}, "EveryDream2"),
        ({"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO"}, "accelerate"),
    ],
)
def test_an_unknown_file_is_refused_by_what_it_is_or_has(content: dict, words: str) -> None:
    with pytest.raises(InputError, match="holds no key of a recipe") as caught:
        recipes.read(json.dumps(content))
    assert words in str(caught.value)


def test_an_unknown_file_is_told_which_files_are_read() -> None:
    with pytest.raises(InputError) as caught:
        recipes.read("a: 1")
    for name in ("OneTrainer", "SimpleTuner", "LoRA_Easy", "musubi", "diffusion-pipe", "sd-scripts", "ai-toolkit"):
        assert name in str(caught.value)


@pytest.mark.parametrize("text", ["[]", '[{"id": "fox", "type": "local"}]', '\n[{"path": "/data/fox", "text": {}}]'])
def test_a_list_of_folders_is_refused_as_such(text: str) -> None:
    with pytest.raises(InputError, match="JSON list"):
        recipes.read(text)


def test_a_toml_of_shared_keys_and_unknown_ones_is_sd_scripts() -> None:
    recipe = toml("learning_rate = 2e-4", "max_train_steps = 900", 'my_note = "x"')
    assert (recipe.source, recipe.config.optimization.steps) == ("sd-scripts TOML", 900)
    assert list_of(recipe, "my_note") == ["missing"]


@pytest.mark.parametrize("text", ['name = "fox"\nversion = "1"', "rank = 8\nlr = 1e-4\nseed = 7"])
def test_a_toml_of_mostly_unknown_keys_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="holds no key of a recipe"):
        recipes.read(text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"data_root": "/data", "cond_dropout": 0.04, "clip_skip": 0, "lr": 1e-6, "min_snr_gamma": None},
            "EveryDream2",
        ),
        ({"type": "SDXL_LORA", "data_loader": {}, "max_train_epochs": 9, "min_snr_gamma": 5.0}, "invoke-training"),
    ],
)
def test_a_file_known_to_be_of_another_trainer_is_refused_though_it_has_keys_of_sd_scripts(
    content: dict, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        recipes.read(json.dumps(content))


@pytest.mark.parametrize("mark", ['model_family = "sdxl"', 'training_method = "LORA"'])
def test_a_network_module_is_no_sign_of_simple_tuner_or_one_trainer(mark: str) -> None:
    recipe = toml(mark, 'network_module = "networks.loha"', "network_dim = 8")
    assert (recipe.source, recipe.config.adapter.kind) == ("sd-scripts TOML", "loha")
