"""Recipes of other trainers, one of each kind, and what became of their keys."""

from __future__ import annotations

import json
from typing import Any

import yaml
from lora_kiln.training import recipes
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

EASY = """
[[subsets]]
image_dir = "/data/fox"
name = "fox"
num_repeats = 4
shuffle_caption = true
keep_tokens = 1

[[subsets]]
image_dir = "/data/hare"
num_repeats = 2

[train_mode]
train_mode = "lora"

[general_args.args]
sdxl = true
max_train_epochs = 20
gradient_accumulation_steps = 4
surprise = 3

[general_args.dataset_args]
resolution = 1024
batch_size = 2

[network_args.args]
network_dim = 24
network_alpha = 12.0
network_train_unet_only = true

[network_args.args.network_args]
algo = "loha"
conv_dim = 8
conv_alpha = 4.0

[optimizer_args.args]
optimizer_type = "AdamW8bit"
lr_scheduler = "cosine"
learning_rate = 7e-5
warmup_ratio = 0.15

[optimizer_args.args.optimizer_args]
weight_decay = "0.1"
betas = "0.9,0.99"

[saving_args.args]
save_every_n_epochs = 1
"""

ONE_TRAINER: dict[str, Any] = {
    "__version": 11,
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_XL_10_BASE",
    "base_model_name": "some/base",
    "concepts": [
        {
            "path": "/data/fox",
            "balancing": 3.0,
            "image": {"enable_random_flip": True, "enable_random_hue": False},
            "text": {"enable_tag_shuffling": True, "keep_tags_count": 2},
        },
        {"path": "/data/hare", "balancing": 1.0},
    ],
    "resolution": "1024",
    "batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 2e-4,
    "learning_rate_scheduler": "COSINE",
    "learning_rate_warmup_steps": 150.0,
    "epochs": 40,
    "train_dtype": "BFLOAT_16",
    "output_dtype": "BFLOAT_16",
    "loss_weight_fn": "MIN_SNR_GAMMA",
    "loss_weight_strength": 5.0,
    "offset_noise_weight": 0.05,
    "masked_training": True,
    "unmasked_weight": 0.1,
    "unmasked_probability": 0.0,
    "unet": {"train": True, "learning_rate": None, "gradient_checkpointing": True, "weight_dtype": "FLOAT_8"},
    "prior": {"train": True, "learning_rate": 7.0},
    "text_encoder": {"train": False, "learning_rate": 1e-5},
    "text_encoder_2": {"train": False},
    "peft_type": "LORA",
    "lora_rank": 32,
    "lora_alpha": 16.0,
    "lora_decompose": True,
    "lokr_dim": 9,
    "optimizer": {"optimizer": "ADAMW", "weight_decay": 0.02, "beta1": 0.9, "beta2": 0.99, "fused": True},
    "optimizer_defaults": {"PRODIGY": {"d_coef": 2.0}},
    "samples": [{"prompt": "a fox", "cfg_scale": 5.0, "diffusion_steps": 24}],
    "sample_after": 100,
    "sample_after_unit": "STEP",
    "save_every": 4,
    "save_every_unit": "EPOCH",
    "surprise": 1,
}

SIMPLE_TUNER: dict[str, Any] = {
    "--model_type": "lora",
    "--model_family": "flux",
    "--lora_type": "standard",
    "--lora_rank": 64,
    "--learning_rate": "1e-4",
    "--lr_scheduler": "polynomial",
    "--lr_warmup_steps": 48,
    "--max_train_steps": 3000,
    "--num_train_epochs": 0,
    "--train_batch_size": 2,
    "--gradient_checkpointing": "true",
    "--grad_clip_method": "norm",
    "--max_grad_norm": 1,
    "--mixed_precision": "bf16",
    "--base_model_precision": "int8-quanto",
    "--optimizer": "adamw_bf16",
    "--optimizer_config": "weight_decay=0.05,eps=1e-7",
    "--resolution": 1024,
    "--caption_dropout_probability": 0.1,
    "--checkpointing_steps": 250,
    "--validation_prompt": "a fox",
    "--validation_steps": 50,
    "--validation_guidance": 4.0,
    "--validation_seed": 3,
    "--crepa_lambda": 0.5,
    "--seed": 42,
    "--data_backend_config": "config/backend.json",
    "--surprise": 1,
}

MUSUBI = """
dit = "/models/dit.safetensors"
vae = "/models/vae.safetensors"
dataset_config = "fox.toml"
network_module = "networks.lora_qwen_image"
network_dim = 16
network_alpha = 8
learning_rate = 5e-5
optimizer_type = "adamw8bit"
timestep_sampling = "shift"
discrete_flow_shift = 2.2
weighting_scheme = "none"
max_train_epochs = 16
gradient_checkpointing = true
mixed_precision = "bf16"
fp8_base = true
fp8_scaled = true
blocks_to_swap = 16
sdpa = true
surprise = 1
"""

MUSUBI_DATA = """
[general]
resolution = [1024, 1024]
caption_extension = ".txt"
batch_size = 2
enable_bucket = true

[[datasets]]
image_directory = "/data/fox"
cache_directory = "/data/cache"
num_repeats = 3
control_directory = "/data/poses"

[[datasets]]
image_directory = "/data/hare"
"""

PIPE = """
output_dir = "/data/out"
dataset = "fox.toml"
epochs = 100
micro_batch_size_per_gpu = 2
pipeline_stages = 1
gradient_accumulation_steps = 4
gradient_clipping = 0.5
warmup_steps = 20
save_every_n_epochs = 5
eval_every_n_epochs = 1
activation_checkpointing = true
save_dtype = "bfloat16"
surprise = 1

[model]
type = "flux"
diffusers_path = "/models/flux"
dtype = "bfloat16"
transformer_dtype = "float8"
flux_shift = true

[adapter]
type = "lora"
rank = 32
dtype = "bfloat16"

[optimizer]
type = "adamw_optimi"
lr = 2e-5
betas = [0.9, 0.99]
weight_decay = 0.02

[monitoring]
wandb_api_key = "k-1"
"""

PIPE_DATA = """
resolutions = [512, 1024]
enable_ar_bucket = true
min_ar = 0.5

[[directory]]
path = "/data/fox"
num_repeats = 3
mask_path = "/data/masks"

[[directory]]
path = "/data/hare"
num_repeats = 5
"""


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
