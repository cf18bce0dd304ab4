"""Other trainers' recipes: what each key becomes, and that none is lost."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
import yaml
from lora_kiln.training import recipes
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.dataset import DatasetSettings
from lora_kiln.training.export import DataFacts, RunFacts, lora_metadata
from lora_kiln.training.problems import InputError
from lora_kiln.training.recipes import kohya_gui, parsing, sd_scripts_keys
from lora_kiln.training.recipes.recipe import Recipe

TOML = """
[model]
pretrained_model_name_or_path = "/models/base.safetensors"
output_name = "fox"

[network]
network_module = "networks.lora"
network_dim = 24
network_alpha = 12
network_args = ["conv_dim=8", "conv_alpha=2", "rank_dropout=0.1", "loraplus_lr_ratio=16"]
network_dropout = 0.05

[learning]
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=(0.9, 0.99)"]
unet_lr = 2e-4
text_encoder_lr = [1e-5, 2e-5]
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 4
lr_warmup_steps = 0.05
max_train_epochs = 12
train_batch_size = 3
seed = 7
mixed_precision = "bf16"
save_precision = "fp16"
min_snr_gamma = 5
noise_offset = 0.03
xformers = true
wandb_api_key = "k-0123456789"
a_key_of_tomorrow = 3

[data]
resolution = "768,768"
enable_bucket = true
max_bucket_reso = 1536
shuffle_caption = true
keep_tokens = 2
caption_dropout_rate = 0.1
color_aug = true
"""

GUI: dict[str, Any] = {
    "LoRA_type": "LyCORIS/LoHa",
    "LyCORIS_preset": "attn-mlp",
    "network_dim": 16,
    "network_alpha": 8,
    "conv_dim": 4,
    "conv_alpha": 1,
    "factor": -1,
    "dora_wd": False,
    "use_tucker": True,
    "optimizer": "Prodigy",
    "optimizer_args": "d_coef=2 decouple=True weight_decay=0.02",
    "learning_rate": 1,
    "unet_lr": 1,
    "text_encoder_lr": 0,
    "lr_scheduler": "cosine",
    "lr_warmup": 10,
    "lr_warmup_steps": 0,
    "epoch": 8,
    "max_train_epochs": "",
    "max_train_steps": 0,
    "max_resolution": "1024,1024",
    "noise_offset_type": "Multires",
    "noise_offset": 0.05,
    "multires_noise_iterations": 6,
    "multires_noise_discount": 0.25,
    "train_batch_size": 2,
    "seed": "",
    "sample_prompts": "a fox --n blurry --l 5 --s 24\n# a note\na hare",
    "sample_every_n_steps": 50,
    "sample_sampler": "euler_a",
    "huggingface_token": "hf_secret",
    "timestep_sampling": "sigma",
    "guidance_scale": 3.5,
    "stop_text_encoder_training": 20,
    "additional_parameters": "--max_grad_norm 0.5 --debiased_estimation_loss",
    "sdxl": True,
    "xformers": "xformers",
    "widget_of_tomorrow": "on",
}

JOB: dict[str, Any] = {
    "job": "extension",
    "config": {
        "name": "fox",
        "process": [
            {
                "type": "sd_trainer",
                "training_folder": "out",
                "trigger_word": "ohwx",
                "network": {"type": "lora", "linear": 32, "linear_alpha": 16, "conv": 8, "conv_alpha": 4},
                "save": {"dtype": "bf16", "save_every": 200, "max_step_saves_to_keep": 3},
                "datasets": [
                    {
                        "folder_path": "/data/fox",
                        "resolution": [512, 768, 1024],
                        "caption_dropout_rate": 0.05,
                        "shuffle_tokens": True,
                        "flip_y": True,
                    },
                    {"folder_path": "/data/hare", "resolution": [512], "num_repeats": 2},
                ],
                "train": {
                    "batch_size": 2,
                    "steps": 900,
                    "gradient_accumulation": 4,
                    "train_text_encoder": False,
                    "noise_scheduler": "flowmatch",
                    "timestep_type": "sigmoid",
                    "optimizer": "adamw8bit",
                    "optimizer_params": {"weight_decay": 1e-4},
                    "lr": 2e-4,
                    "dtype": "bf16",
                    "ema_config": {"use_ema": True, "ema_decay": 0.98},
                    "loss_type": "mae",
                    "do_fft_loss": False,
                },
                "model": {"name_or_path": "x/y", "quantize": True, "arch": "flux"},
                "sample": {"sample_every": 100, "prompts": ["[trigger] in a wood"], "seed": 4, "guidance_scale": 4},
                "surprise": {"inner": 1},
            }
        ],
    },
    "meta": {"version": "1.0"},
}

METADATA = {
    "ss_network_module": "lycoris.kohya",
    "ss_network_dim": "16",
    "ss_network_alpha": "1.0",
    "ss_network_args": '{"algo": "lokr", "factor": "8", "conv_dim": "16", "conv_alpha": "1", "preset": "full"}',
    "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.05,betas=(0.9, 0.95))",
    "ss_learning_rate": "0.0003",
    "ss_unet_lr": "0.0003",
    "ss_text_encoder_lr": "None",
    "ss_lr_scheduler": "constant_with_warmup",
    "ss_lr_warmup_steps": "100",
    "ss_max_train_steps": "2000",
    "ss_batch_size_per_device": "4",
    "ss_min_snr_gamma": "None",
    "ss_debiased_estimation": "True",
    "ss_resolution": "(768, 768)",
    "ss_seed": "11",
    "ss_mixed_precision": "bf16",
    "ss_scale_weight_norms": "1.0",
    "ss_tag_frequency": "{}",
    "ss_session_id": "12",
    "ss_future": "yes",
    "modelspec.trigger_phrase": "ohwx",
    "sshs_model_hash": "abc",
}


def gui(**changes: Any) -> Recipe:
    return recipes.read(json.dumps({"LoRA_type": "Standard", **changes}))


def toml(*lines: str) -> Recipe:
    return recipes.read("\n".join(lines), "a.toml")


def job(**tables: Any) -> Recipe:
    process = {"type": "sd_trainer", "train": {}, "network": {}, **tables}
    return recipes.read(yaml.safe_dump({"job": "extension", "config": {"name": "n", "process": [process]}}))


def keys_of(lines: tuple[str, ...]) -> list[str]:
    return [line.split(" = ")[0] for line in lines if " = " in line.split(":")[0].split("->")[0]]


def accounts(recipe: Recipe) -> dict[str, list[str]]:
    return {name: keys_of(getattr(recipe, name)) for name in ("carried", "ignored", "missing")}


def list_of(recipe: Recipe, key: str) -> list[str]:
    return [name for name, keys in accounts(recipe).items() if key in keys]


def line_of(recipe: Recipe, key: str) -> str:
    lines = (*recipe.carried, *recipe.ignored, *recipe.missing)
    return next(line for line in lines if line.startswith(f"{key} = "))


# ---------------------------------------------------------------- every key is accounted for, once

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


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (TOML, TOML_KEYS),
        (json.dumps(GUI), GUI_KEYS),
        (yaml.safe_dump(JOB), JOB_KEYS),
        (json.dumps(METADATA), METADATA_KEYS),
    ],
    ids=["toml", "gui", "job", "metadata"],
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
    ],
)
def test_an_unknown_key_is_listed_as_unknown(text: str, key: str) -> None:
    assert "unknown" in next(line for line in recipes.read(text).missing if line.startswith(f"{key} = "))


@pytest.mark.parametrize("text", [TOML, json.dumps(GUI), yaml.safe_dump(JOB), json.dumps(METADATA)])
def test_what_comes_out_is_a_config_and_settings_that_load_dataset_has(text: str) -> None:
    recipe = recipes.read(text)
    if text == json.dumps(METADATA):
        assert recipe.values["debiased_estimation"]
    assert isinstance(recipe.config, LoRAConfig)
    assert set(recipe.dataset) <= {"repeats", *(each.name for each in fields(DatasetSettings))}


def test_every_argument_of_the_tables_is_settled_by_itself() -> None:
    """A key that two tables claim, or none does, would be settled by chance."""
    tables = (set(sd_scripts_keys.IGNORED), set(sd_scripts_keys.MISSING), set(sd_scripts_keys.CARRIED))
    assert not tables[0] & tables[1] and not tables[0] & tables[2] and not tables[1] & tables[2]
    known = sorted(key for key in sd_scripts_keys.KNOWN if "." not in key)
    recipe = toml(*(f'{key} = ""' for key in known if key != "is_reg"))
    assert not [line for line in (*recipe.missing, *recipe.ignored) if "unknown" in line]


# ---------------------------------------------------------------- sd-scripts


def test_toml_becomes_a_config() -> None:
    recipe = recipes.read(TOML)
    assert recipe.source == "sd-scripts TOML"
    config = recipe.config
    assert (config.adapter, config.rank, config.alpha, config.dropout) == ("lora", 24, 12.0, 0.05)
    assert (config.targets, config.conv_rank, config.conv_alpha) == ("all linear and convolution", 8, 2.0)
    assert (config.rank_dropout, config.learning_rate, config.text_encoder_learning_rate) == (0.1, 2e-4, 1e-5)
    assert (config.optimizer, config.weight_decay, config.optimizer_args) == ("adamw8bit", 0.1, "betas=0.9,0.99")
    assert (config.scheduler, config.scheduler_cycles, config.warmup) == ("cosine_with_restarts", 4, 0.05)
    assert (config.epochs, config.batch_size, config.seed) == (12, 3, 7)
    assert (config.precision, config.save_precision) == ("bf16", "fp16")
    assert (config.min_snr_gamma, config.noise_offset) == (5.0, 0.03)


def test_toml_becomes_dataset_settings() -> None:
    data = recipes.read(TOML).dataset
    assert (data["resolution"], data["shortest_side"], data["longest_side"]) == (768, 256, 1536)
    assert data["shuffle_tags"] and data["keep_tokens"] == 2 and data["caption_dropout"] == 0.1


def test_what_cannot_be_carried_over_says_what_it_would_have_done() -> None:
    recipe = recipes.read(TOML)
    assert "LoRA+" in line_of(recipe, "network.network_args.loraplus_lr_ratio")
    assert "colours" in line_of(recipe, "data.color_aug")
    assert any("further text encoders" in line for line in recipe.missing)


def test_an_empty_toml_is_kohyas_defaults_not_ours() -> None:
    recipe = recipes.read("# nothing\n", "empty.toml")
    config, ours = recipe.config, LoRAConfig()
    assert (config.rank, config.alpha) == (4, 1.0) and (ours.rank, ours.alpha) == (16, 16.0)
    assert (config.learning_rate, config.text_encoder_learning_rate) == (2e-6, 2e-6)
    assert (config.scheduler, config.steps, config.optimizer) == ("constant", 1600, "adamw")
    assert (config.precision, config.save_precision) == ("fp32", "fp32")
    assert config.targets == "attention and feed-forward"
    listed = {line.split(" -> ")[0] for line in recipe.defaults}
    assert {"network_dim", "network_alpha", "learning_rate", "lr_scheduler", "max_train_steps"} <= listed
    assert recipe.carried == () and recipe.ignored == ()


def test_secrets_are_not_shown() -> None:
    report = recipes.read(TOML).report() + recipes.read(json.dumps(GUI)).report()
    assert "k-0123456789" not in report and "hf_secret" not in report
    assert "wandb_api_key = (hidden)" in report and "huggingface_token = (hidden)" in report


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        (["network_dim = 8", "network_alpha = 0"], "alpha", 8.0),
        (['network_module = "lycoris.kohya"', 'network_args = ["algo=loha"]'], "adapter", "loha"),
        (['network_module = "lycoris.kohya"', 'network_args = ["algo=locon", "dora_wd=True"]'], "adapter", "dora"),
        (['network_module = "lycoris.kohya"', 'network_args = ["algo=diag-oft"]'], "adapter", "oft"),
        (['network_module = "lycoris.kohya"', 'network_args = ["preset=attn-only"]'], "targets", "attention"),
        (['network_module = "lycoris.kohya"', 'network_args = ["rs_lora=True"]'], "rslora", True),
        (
            ['network_module = "lycoris.kohya"', 'network_args = ["preset=unet-transformer-only"]', "unet_lr = 1e-4"],
            "text_encoder_learning_rate",
            0.0,
        ),
        (['network_module = "lycoris.kohya"', 'network_args = ["algo=lokr", "factor=8"]'], "lokr_factor", 8),
        (["unet_lr = 1e-4", "network_train_unet_only = true"], "text_encoder_learning_rate", 0.0),
        (["unet_lr = 1e-4", "cache_text_encoder_outputs = true"], "text_encoder_learning_rate", 0.0),
        (["learning_rate = 3e-4"], "text_encoder_learning_rate", 3e-4),
        (["learning_rate = 3e-4"], "learning_rate", 3e-4),
        (["learning_rate = 3e-4", "text_encoder_lr = 1e-5"], "text_encoder_learning_rate", 1e-5),
        (["max_train_steps = 77"], "steps", 77),
        (["lr_warmup_steps = 30"], "warmup", 30.0),
        (["gradient_accumulation_steps = 2"], "gradient_accumulation", 2),
        (["max_grad_norm = 0"], "max_grad_norm", 0.0),
        (["gradient_checkpointing = true"], "gradient_checkpointing", True),
        (['lr_scheduler = "polynomial"', "lr_scheduler_power = 2"], "scheduler_power", 2.0),
        (['loss_type = "huber"', "huber_c = 0.3"], "huber_c", 0.3),
        (['loss_type = "huber"', 'huber_schedule = "constant"', "huber_c = 0.2", "huber_scale = 2"], "huber_c", 0.4),
        (['loss_type = "smooth_l1"', 'huber_schedule = "exponential"'], "huber_schedule", "exponential"),
        (["debiased_estimation_loss = true"], "debiased_estimation", True),
        (["multires_noise_iterations = 8"], "multires_noise_discount", 0.3),
        (["ip_noise_gamma = 0.1"], "ip_noise_gamma", 0.1),
        (["zero_terminal_snr = true"], "zero_terminal_snr", True),
        (["min_timestep = 100", "max_timestep = 900"], "min_timestep", 100),
        (["max_timestep = 900"], "max_timestep", 900),
        (["save_every_n_steps = 250"], "save_every", 250),
        (['save_precision = "bf16"'], "save_precision", "bf16"),
        (['timestep_sampling = "flux_shift"'], "timestep_sampling", "resolution_shift"),
        (['timestep_sampling = "shift"', "discrete_flow_shift = 3.1"], "timestep_shift", 3.1),
        (['timestep_sampling = "sigmoid"', "sigmoid_scale = 1.5"], "logit_std", 1.5),
        (['timestep_sampling = "sigmoid"'], "timestep_sampling", "logit_normal"),
        (['timestep_sampling = "uniform"'], "timestep_sampling", "uniform"),
        (['weighting_scheme = "logit_normal"', "logit_mean = 0.5"], "logit_mean", -0.5),
        (['weighting_scheme = "logit_normal"'], "timestep_sampling", "shift"),
    ],
)  # fmt: skip
def test_an_argument_becomes_a_field(lines: list[str], field: str, value: Any) -> None:
    made = getattr(toml(*lines).config, field)
    assert made == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("lines", "setting", "value"),
    [
        (["resolution = 640"], "resolution", 640),
        (['resolution = "512,2048"'], "resolution", 1024),
        (["resolution = 512"], "longest_side", 512),
        (["enable_bucket = true", "bucket_reso_steps = 32"], "bucket_step", 32),
        (["flip_aug = true"], "flip", True),
        (["random_crop = true"], "random_crop", True),
        (["caption_tag_dropout_rate = 0.2"], "tag_dropout", 0.2),
        (["prior_loss_weight = 0.5"], "prior_loss_weight", 0.5),
        (["masked_loss = true"], "masked_loss", True),
        (["alpha_mask = true"], "masked_loss", True),
        (['caption_prefix = "photo of "'], "caption_prefix", "photo of"),
        (["dataset_repeats = 5"], "repeats", 5),
    ],
)
def test_an_argument_becomes_a_setting_of_load_dataset(lines: list[str], setting: str, value: Any) -> None:
    assert toml(*lines).dataset[setting] == value


@pytest.mark.parametrize(
    ("name", "ours", "decay", "arguments", "place"),
    [
        ("AdamW", "adamw", 0.01, "", "carried"),
        ("AdamW8bit", "adamw8bit", 0.01, "", "carried"),
        ("PagedAdamW8bit", "adamw8bit", 0.01, "is_paged=True", "carried"),
        ("Lion", "lion", 0.0, "", "carried"),
        ("Lion8bit", "lion", 0.0, "", "missing"),
        ("Prodigy", "prodigy", 0.0, "", "carried"),
        ("prodigyopt.Prodigy", "prodigy", 0.0, "", "carried"),
        ("DAdaptAdam", "prodigy", 0.0, "", "missing"),
        ("AdamWScheduleFree", "schedule_free", 0.0, "", "carried"),
        ("SGDNesterov", "adamw", 0.01, "", "missing"),
    ],
)
def test_an_optimizer_keeps_its_own_defaults(name: str, ours: str, decay: float, arguments: str, place: str) -> None:
    recipe = toml(f'optimizer_type = "{name}"', "learning_rate = 1.0")
    config = recipe.config
    assert (config.optimizer, config.weight_decay, config.optimizer_args) == (ours, decay, arguments)
    assert list_of(recipe, "optimizer_type") == [place]


def test_older_switches_choose_the_optimizer() -> None:
    assert toml("use_8bit_adam = true").config.optimizer == "adamw8bit"
    assert toml("use_lion_optimizer = true").config.optimizer == "lion"


def test_adafactor_without_its_own_rate_scales_by_the_weights_as_its_package_does() -> None:
    recipe = toml('optimizer_type = "Adafactor"', 'optimizer_args = ["relative_step=False", "warmup_init=False"]')
    assert recipe.config.optimizer_args == "scale_parameter=True"
    assert list_of(recipe, "optimizer_args.relative_step") == ["ignored"]


def test_adafactors_own_rate_is_said_to_be_lost() -> None:
    recipe = toml('optimizer_type = "Adafactor"')
    assert any(line.startswith("optimizer_args.relative_step (absent, so true)") for line in recipe.missing)


def test_schedule_free_takes_no_scheduler_and_keeps_its_warmup() -> None:
    lines = ['optimizer_type = "AdamWScheduleFree"', 'optimizer_args = ["warmup_steps=40"]', 'lr_scheduler = "cosine"']
    recipe = toml(*lines)
    assert (recipe.config.scheduler, recipe.config.warmup) == ("constant", 40.0)
    assert list_of(recipe, "lr_scheduler") == ["ignored"]


def test_prodigy_gets_one_rate_for_all() -> None:
    recipe = toml('optimizer_type = "Prodigy"', "unet_lr = 1.0", "text_encoder_lr = 0.5")
    assert recipe.config.text_encoder_learning_rate == recipe.config.learning_rate == 1.0


@pytest.mark.parametrize("module", ["networks.dylora", "networks.lora_fa", "my.network"])
def test_another_network_is_said_to_be_lost(module: str) -> None:
    recipe = toml(f'network_module = "{module}"')
    assert recipe.config.adapter == "lora" and list_of(recipe, "network_module") == ["missing"]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('mixed_precision = "fp16"', "precision", "auto"),
        ('lr_scheduler = "inverse_sqrt"', "scheduler", "constant"),
        ('lr_scheduler = "cosine_with_min_lr"', "scheduler", "cosine"),
        ('loss_type = "l1"', "loss", "l2"),
    ],
)
def test_what_takes_the_place_of_something_not_offered_is_named(line: str, field: str, value: str) -> None:
    recipe = toml(line)
    key = line.split(" ")[0]
    assert getattr(recipe.config, field) == value
    assert list_of(recipe, key) == ["missing"] and f'{field} = "{value}" in its place' in line_of(recipe, key)


@pytest.mark.parametrize(
    "line", ["scale_weight_norms = 0", "color_aug = false", "clip_skip = 1", 'dataset_config = ""']
)
def test_what_is_off_loses_nothing(line: str) -> None:
    assert list_of(toml(line), line.split(" ")[0]) == ["ignored"]


def test_sample_prompts_in_another_file_are_lost_with_their_interval() -> None:
    recipe = toml('sample_prompts = "prompts.txt"', "sample_every_n_steps = 100")
    assert recipe.config.sample_every == 0
    assert list_of(recipe, "sample_prompts") == list_of(recipe, "sample_every_n_steps") == ["missing"]


DATASETS = """
[general]
shuffle_caption = true
flip_aug = false

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 1
  [[datasets.subsets]]
  image_dir = "/data/a"
  num_repeats = 3
  flip_aug = true
  [[datasets.subsets]]
  image_dir = "/data/b"
  num_repeats = 7
  [[datasets.subsets]]
  is_reg = true
  image_dir = "/data/reg"
  num_repeats = 2

[[datasets]]
resolution = [768, 768]
"""


def test_a_dataset_file_sets_load_dataset_and_leaves_the_training_alone() -> None:
    recipe = recipes.read(DATASETS)
    assert recipe.source == "sd-scripts dataset file"
    assert recipe.values == {"batch_size": 4} and recipe.config.rank == LoRAConfig().rank
    data = recipe.dataset
    assert (data["resolution"], data["extra_resolutions"], data["repeats"]) == (512, "768", 3)
    assert data["shuffle_tags"] and data["flip"] and data["keep_tokens"] == 1


def test_a_second_subsets_other_value_is_said_to_be_lost() -> None:
    recipe = recipes.read(DATASETS)
    assert list_of(recipe, "datasets[0].subsets[1].num_repeats") == ["missing"]
    assert list_of(recipe, "datasets[0].subsets[2].num_repeats") == ["missing"]
    assert list_of(recipe, "general.flip_aug") == ["missing"]
    assert list_of(recipe, "datasets[1].resolution") == ["carried"]


# ---------------------------------------------------------------- kohya_ss


def test_a_gui_file_becomes_a_config() -> None:
    recipe = recipes.read(json.dumps({**GUI, "min_snr_gamma": 0}))
    assert recipe.source == "kohya_ss GUI JSON"
    config = recipe.config
    assert (config.adapter, config.rank, config.alpha) == ("loha", 16, 8.0)
    assert config.targets == "attention and feed-forward" and config.conv_rank == 0
    assert (config.optimizer, config.weight_decay) == ("prodigy", 0.02)
    assert set(config.optimizer_args.split()) == {"d_coef=2", "decouple=True"}
    assert (config.learning_rate, config.text_encoder_learning_rate) == (1.0, 0.0)
    assert (config.scheduler, config.warmup, config.epochs, config.batch_size) == ("cosine", 0.1, 8, 2)
    assert (config.noise_offset, config.multires_noise_iterations) == (0.0, 6)
    assert config.multires_noise_discount == 0.25
    assert config.sample_prompts == ("a fox", "a hare") and config.sample_every == 50
    assert (config.sample_guidance, config.sample_steps) == (5.0, 24)
    assert config.max_grad_norm == 0.5 and config.debiased_estimation


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
    assert getattr(gui(**changes).config, field) == value


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


def test_other_lycoris_networks_are_said_to_be_lost() -> None:
    recipe = gui(LoRA_type="LyCORIS/GLoRA")
    assert recipe.config.adapter == "lora" and list_of(recipe, "LoRA_type") == ["missing"]


# ---------------------------------------------------------------- ai-toolkit


def test_a_job_becomes_a_config() -> None:
    recipe = recipes.read(yaml.safe_dump(JOB))
    assert recipe.source == "ai-toolkit job"
    config = recipe.config
    assert (config.adapter, config.rank, config.alpha) == ("lora", 32, 16.0)
    assert (config.targets, config.conv_rank, config.conv_alpha) == ("all linear and convolution", 8, 4.0)
    assert (config.batch_size, config.steps, config.gradient_accumulation) == (2, 900, 4)
    assert (config.learning_rate, config.text_encoder_learning_rate) == (2e-4, 0.0)
    assert (config.optimizer, config.weight_decay, config.optimizer_args) == ("adamw8bit", 1e-4, "eps=1e-6")
    assert (config.timestep_sampling, config.scheduler, config.loss) == ("logit_normal", "constant", "l2")
    assert (config.ema_decay, config.precision, config.save_precision) == (0.98, "bf16", "bf16")
    assert (config.save_every, config.sample_every, config.sample_guidance) == (200, 100, 4.0)
    assert config.sample_prompts == ("ohwx in a wood",) and config.gradient_checkpointing


def test_a_jobs_data_becomes_load_datasets() -> None:
    recipe = recipes.read(yaml.safe_dump(JOB))
    data = recipe.dataset
    assert (data["resolution"], data["extra_resolutions"], data["trigger_word"]) == (1024, "768, 512", "ohwx")
    assert data["shuffle_tags"] and data["caption_dropout"] == 0.05
    assert list_of(recipe, "datasets[0].flip_y") == list_of(recipe, "datasets[1].num_repeats") == ["missing"]
    assert list_of(recipe, "train.loss_type") == list_of(recipe, "model.quantize") == ["missing"]
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
    assert getattr(job(**tables).config, field) == value


def test_a_whole_lokr_factor_is_a_rank_above_every_layer() -> None:
    config = job(network={"type": "lokr"}).config
    assert config.adapter == "lokr" and config.rank == config.alpha >= 4096


def test_a_rate_without_a_dot_is_a_number_in_yaml_too() -> None:
    text = "config:\n  process:\n  - train: {lr: 1e-4}\n    network: {linear: 8}\n"
    assert recipes.read(text).config.learning_rate == 1e-4


def test_a_job_without_network_would_have_trained_the_model() -> None:
    process = {"type": "sd_trainer", "train": {"lr": 1e-5}}
    recipe = recipes.read(json.dumps({"config": {"process": [process, {"type": "other"}]}}))
    assert any("the whole model" in line for line in recipe.missing)
    assert list_of(recipe, "process[1]") == ["missing"]


# ---------------------------------------------------------------- metadata


def test_metadata_becomes_a_config() -> None:
    recipe = recipes.read_metadata(METADATA, ["lora_unet_a.lokr_w1"])
    config = recipe.config
    assert (config.adapter, config.rank, config.alpha, config.lokr_factor) == ("lokr", 16, 1.0, 8)
    assert (config.targets, config.conv_rank) == ("all linear and convolution", 16)
    assert (config.optimizer, config.weight_decay, config.optimizer_args) == ("adamw8bit", 0.05, "betas=0.9,0.95")
    assert (config.learning_rate, config.text_encoder_learning_rate) == (3e-4, 0.0)
    assert (config.scheduler, config.warmup, config.steps) == ("constant", 100.0, 2000)
    assert (config.batch_size, config.seed, config.precision) == (4, 11, "bf16")
    assert config.debiased_estimation and config.min_snr_gamma == 0.0
    assert recipe.dataset["resolution"] == 768 and recipe.dataset["trigger_word"] == "ohwx"
    assert recipe.defaults == ()


def test_layers_of_a_text_encoder_say_that_it_was_trained() -> None:
    layers = ["lora_unet_a.lora_down.weight", "lora_te1_b.lora_down.weight"]
    assert recipes.read_metadata(METADATA, layers).config.text_encoder_learning_rate == 3e-4


def test_a_pasted_header_is_read_with_its_layers() -> None:
    header = {"__metadata__": METADATA, "lora_unet_a.lora_down.weight": {"dtype": "F16"}}
    assert recipes.read(json.dumps(header)).config.text_encoder_learning_rate == 0.0


def test_the_range_of_timesteps_comes_from_modelspec() -> None:
    config = recipes.read_metadata({"ss_network_dim": "4", "modelspec.timestep_range": "100,899"}).config
    assert (config.min_timestep, config.max_timestep) == (100, 900)


def test_metadata_without_a_training_is_refused() -> None:
    with pytest.raises(InputError, match="no key begins with ss_"):
        recipes.read_metadata({"format": "pt"})


OWN = [
    LoRAConfig(),
    LoRAConfig(
        adapter="dora", rank=8, alpha=4.0, targets="SDXL style blocks", layer_rules="*attn2* rank=4", dropout=0.1,
        rank_dropout=0.2, module_dropout=0.3, text_encoder_learning_rate=1e-5, seed=5, batch_size=3,
    ),
    LoRAConfig(adapter="lokr", lokr_factor=4, targets="all linear and convolution", conv_rank=4, conv_alpha=2.0),
    LoRAConfig(adapter="loha", min_snr_gamma=5.0, noise_offset=0.1, multires_noise_iterations=6, min_timestep=100),
    LoRAConfig(adapter="oft", targets="attention", optimizer="lion", weight_decay=0.2, loss="huber", huber_c=0.3),
    LoRAConfig(rslora=True, optimizer_args="betas=0.9,0.99 eps=1e-06", warmup=50, scheduler="polynomial"),
    LoRAConfig(optimizer="schedule_free", scheduler="constant", warmup=20, ip_noise_gamma=0.1),
    LoRAConfig(debiased_estimation=True, gradient_checkpointing=True, steps=40, gradient_accumulation=2),
    LoRAConfig(optimizer="prodigy", learning_rate=1.0, scheduler="cosine_with_restarts", zero_terminal_snr=True),
]  # fmt: skip
KEPT_BY_A_FILE = (
    *("adapter", "rank", "rslora", "targets", "layer_rules", "rank_dropout", "module_dropout", "dropout", "seed"),
    *("learning_rate", "text_encoder_learning_rate", "optimizer", "optimizer_args", "weight_decay", "scheduler"),
    *("warmup", "scheduler_cycles", "scheduler_power", "batch_size", "gradient_accumulation", "max_grad_norm"),
    *("min_snr_gamma", "debiased_estimation", "loss", "huber_c", "noise_offset", "multires_noise_iterations"),
    *("ip_noise_gamma", "zero_terminal_snr", "min_timestep", "max_timestep", "gradient_checkpointing", "steps"),
)


@pytest.mark.parametrize("config", OWN, ids=lambda config: f"{config.adapter}-{config.optimizer}-{config.scheduler}")
def test_our_own_files_give_their_recipe_back(config: LoRAConfig) -> None:
    run = RunFacts("fox", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "eps", 9, config.steps, 1, 2, 0.0, 1.0)
    data = DataFacts((), 768, {(768, 768): 4}, "ohwx", flip=True, keep_tokens=2, shuffle_tags=True)
    recipe = recipes.read_metadata(lora_metadata(config, run, data))
    for name in KEPT_BY_A_FILE:
        assert getattr(recipe.config, name) == getattr(config, name), name
    assert config.adapter == "oft" or recipe.config.alpha == config.alpha
    if config.conv_rank:
        assert (recipe.config.conv_rank, recipe.config.conv_alpha) == (config.conv_rank, config.conv_alpha)
    assert (recipe.dataset["resolution"], recipe.dataset["trigger_word"]) == (768, "ohwx")
    assert recipe.dataset["flip"] and recipe.dataset["shuffle_tags"] and recipe.dataset["keep_tokens"] == 2
    assert not [line for line in recipe.missing if "unknown" in line]


# ---------------------------------------------------------------- refusals


def test_contradictions_name_the_files_keys() -> None:
    recipe = toml("min_snr_gamma = 5", "debiased_estimation_loss = true", "network_dim = 0")
    with pytest.raises(InputError) as caught:
        _ = recipe.config
    assert len(caught.value.problems) == 2
    assert any("In the file: network_dim" in problem for problem in caught.value.problems)
    assert any("debiased_estimation_loss" in problem for problem in caught.value.problems)


def test_values_of_the_wrong_kind_are_named_all_at_once() -> None:
    lines = ['network_dim = "many"', "train_batch_size = 1.5", 'flip_aug = "maybe"', "lr_scheduler = 3"]
    with pytest.raises(InputError) as caught:
        toml(*lines, "noise_offset = nan", "seed = [1]", 'resolution = "a,b"', 'optimizer_args = ["betas=x"]')
    keys = ("network_dim", "train_batch_size", "flip_aug", "lr_scheduler", "noise_offset", "seed", "resolution")
    for key in (*keys, "optimizer_args.betas"):
        assert any(problem.startswith(f"{key} is ") for problem in caught.value.problems), key


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


def test_a_hostile_key_stays_on_one_short_line() -> None:
    recipe = recipes.read(json.dumps({"LoRA_type": "Standard", "a\nb\x1b[31m" + "c" * 500: "d\n" * 500}))
    line = next(line for line in recipe.missing if line.startswith("a b"))
    assert "\n" not in line and "\x1b" not in line and len(line) < 300


def test_yaml_words_are_not_taken_for_truth_values() -> None:
    assert parsing.parse("a: no\nb: true\nc: 12\nd: ~\ne: '1'")[1] == {
        "a": "no", "b": True, "c": 12, "d": None, "e": "1",
    }  # fmt: skip


def test_a_report_names_every_line() -> None:
    recipe = recipes.read(TOML)
    report = recipe.report()
    for line in (*recipe.carried, *recipe.ignored, *recipe.missing, *recipe.defaults):
        assert line in report
    assert report.index("Not carried over\n") < report.index("Carried over\n")
    assert "resolution = 768" in report
