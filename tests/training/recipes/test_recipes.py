"""Recipes of every kind: each key is accounted for, and what is none is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import yaml
from lora_kiln.training import recipes
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.dataset import DatasetSettings

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
    accounts,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOML_KEYS = [
    *("model.pretrained_model_name_or_path", "model.output_name", "network.network_module", "network.network_dim"),
    *("network.network_alpha", "network.network_dropout", "learning.optimizer_type", "learning.unet_lr"),
    *(f"network.network_args.{name}" for name in ("conv_dim", "conv_alpha", "rank_dropout", "loraplus_lr_ratio")),
    *(f"learning.optimizer_args.{name}" for name in ("weight_decay", "betas")),
    *("learning.text_encoder_lr", "learning.lr_scheduler", "learning.lr_scheduler_num_cycles"),
    *("learning.lr_warmup_steps", "learning.max_train_epochs", "learning.train_batch_size", "learning.seed"),
    *("learning.mixed_precision", "learning.save_precision", "learning.min_snr_gamma", "learning.noise_offset"),
    *("learning.xformers", "learning.wandb_api_key", "learning.a_key_of_tomorrow", "data.resolution"),
    *("data.enable_bucket", "data.max_bucket_reso", "data.shuffle_caption", "data.keep_tokens"),
    *("data.caption_dropout_rate", "data.color_aug"),
]
GUI_KEYS = [
    *(key for key in GUI if key not in ("additional_parameters", "optimizer_args")),
    *("additional_parameters --max_grad_norm", "additional_parameters --debiased_estimation_loss"),
    *("optimizer_args.d_coef", "optimizer_args.decouple", "optimizer_args.weight_decay"),
]
PROCESS = JOB["config"]["process"][0]
JOB_KEYS = [
    *("job", "config.name", "meta.version", "type", "training_folder", "trigger_word", "surprise.inner"),
    *(f"{table}.{key}" for table in ("network", "save", "model", "sample") for key in PROCESS[table]),
    *(f"train.{key}" for key in PROCESS["train"] if key not in ("optimizer_params", "ema_config")),
    *("train.optimizer_params.weight_decay", "train.ema_config.use_ema", "train.ema_config.ema_decay"),
    *(f"datasets[{number}].{key}" for number, each in enumerate(PROCESS["datasets"]) for key in each),
]
METADATA_KEYS = [
    *(key for key in METADATA if key not in ("ss_network_args", "ss_optimizer")),
    *(f"ss_network_args.{name}" for name in ("algo", "factor", "conv_dim", "conv_alpha", "preset")),
    *("ss_optimizer", "ss_optimizer.weight_decay", "ss_optimizer.betas"),
]


def paths(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The path of every value that is neither a table nor a list of tables."""
    for key, value in table.items():
        tables = value if isinstance(value, list) and value and isinstance(value[0], dict) else []
        for number, each in enumerate(tables):
            yield from paths(each, f"{prefix}{key}[{number}].")
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{key}.")
        elif not tables:
            yield f"{prefix}{key}"


ONE_TRAINER_KEYS = [
    *(path for path in paths(ONE_TRAINER) if not path.startswith("optimizer.beta")),
    "optimizer.beta1, optimizer.beta2",
]
SIMPLE_TUNER_KEYS = [
    *(key for key in SIMPLE_TUNER if key != "--optimizer_config"),
    *("--optimizer_config.weight_decay", "--optimizer_config.eps"),
]
NEW = {
    "easy": (EASY, list(paths(tomllib.loads(EASY)))),
    "onetrainer": (json.dumps(ONE_TRAINER), ONE_TRAINER_KEYS),
    "simpletuner": (json.dumps(SIMPLE_TUNER), SIMPLE_TUNER_KEYS),
    "musubi": (MUSUBI, list(paths(tomllib.loads(MUSUBI)))),
    "musubi data": (MUSUBI_DATA, list(paths(tomllib.loads(MUSUBI_DATA)))),
    "diffusion-pipe": (PIPE, list(paths(tomllib.loads(PIPE)))),
    "diffusion-pipe data": (PIPE_DATA, list(paths(tomllib.loads(PIPE_DATA)))),
}


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (TOML, TOML_KEYS),
        (json.dumps(GUI), GUI_KEYS),
        (yaml.safe_dump(JOB), JOB_KEYS),
        (json.dumps(METADATA), METADATA_KEYS),
        *NEW.values(),
    ],
    ids=["toml", "gui", "job", "metadata", *NEW],
)
def test_every_key_stands_in_exactly_one_list(text: str, keys: list[str]) -> None:
    found = accounts(recipes.read(text))
    assert sorted(key for listed in found.values() for key in listed) == sorted(keys)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (TOML, "learning.a_key_of_tomorrow"),
        (json.dumps(GUI), "widget_of_tomorrow"),
        (yaml.safe_dump(JOB), "surprise.inner"),
        (json.dumps(METADATA), "ss_future"),
        (EASY, "general_args.args.surprise"),
        (json.dumps(ONE_TRAINER), "surprise"),
        (json.dumps(SIMPLE_TUNER), "--surprise"),
        (MUSUBI, "surprise"),
        (PIPE, "surprise"),
    ],
)
def test_an_unknown_key_is_listed_as_unknown(text: str, key: str) -> None:
    assert "unknown" in next(line for line in recipes.read(text).missing if line.startswith(f"{key} = "))


@pytest.mark.parametrize(
    "text", [TOML, json.dumps(GUI), yaml.safe_dump(JOB), json.dumps(METADATA), *(text for text, _ in NEW.values())]
)
def test_what_comes_out_is_a_config_and_settings_that_load_dataset_has(text: str) -> None:
    recipe = recipes.read(text)
    if text == json.dumps(METADATA):
        assert recipe.values["debiased_estimation"]
    assert isinstance(recipe.config, LoRAConfig)
    assert set(recipe.dataset) <= {"repeats", *(each.name for each in fields(DatasetSettings))}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a = 1\n" * 200_000, "larger than"),
        ('{"a":' * 100_000, "deeper than"),
        ('{"a":' * 20 + "1" + "}" * 20, "deeper than"),
        ("a: " + "[" * 100_000, "deeper than"),
        ("- " * 100_000, "deeper than"),
        ("a = " + "[" * 100_000, "deeper than"),
        ("\n".join("a." * 5_000 + f"b{number} = 1" for number in range(50)), "deeper than"),
        ("\n".join(f"k{number} = 1" for number in range(20_000)), "more than"),
        ("config: &a [1]\njob: *a", "anchors"),
        ("job: *a", "aliases"),
        ("config: !!python/object/apply:os.system ['true']", "tag"),
        ("network_dim = " + "9" * 10_000, "TOML"),
        ('{"LoRA_type": 1,, }', "JSON"),
        ('{"LoRA_type": "Standard", "LoRA_type": "Flux1"}', "stands twice"),
        ("job: a\njob: b", "stands twice"),
        ("network_dim = 1\nnetwork_dim = 2", "TOML"),
        ("a\0b = 1", "bytes"),
        ("just words", "no table"),
        ("[tool.ruff]\nline-length = 120", "no key of a recipe"),
        ('{"prompt": {"1": {"class_type": "KSampler"}}}', "no key of a recipe"),
        ("config:\n  process:\n  - type: generate", "trains nothing"),
        ("", "empty"),
    ],
)
def test_what_is_no_recipe_is_refused_by_its_fault(text: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        recipes.read(text)
