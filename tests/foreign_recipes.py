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
