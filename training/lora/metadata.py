"""Metadata about the training in a LoRA file: kohya's `ss_*`, ModelSpec, and our own `kiln_*`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .. import host
from ..adapters import KINDS
from ..config import LoRAConfig
from ..learning.prediction import PREDICTIONS

OWN = "kiln_"
"""Start of our own keys; the name of a config field follows."""
OWN_FIELDS = (
    *("conv_rank", "conv_alpha", "warmup", "epochs", "timestep_sampling", "ema_decay", "precision", "save_precision"),
    *("deterministic", "cuda_graphs", "fit_memory", "validation_share", "validation_every", "validation_patience"),
    *("keep_best", "on_divergence", "checkpoint_minutes", "keep_checkpoints"),
)
"""Config fields that have no key of kohya's, or whose key there holds the run's result instead of the setting."""
KOHYA, LYCORIS = "networks.lora", "lycoris.kohya"
"""ss_network_module of our files; for some families kohya has a network module of its own."""
COMFYUI = "https://github.com/comfyanonymous/ComfyUI"
"""modelspec.implementation of ComfyUI's names."""
DENSITIES = {"uniform": "uniform", "logit_normal": "sigmoid", "shift": "shift", "resolution_shift": "flux_shift"}
"""Our timestep densities -> kohya's names (ss_timestep_sampling)."""


@dataclass(frozen=True)
class Folder:
    """A folder of training pictures."""

    name: str
    pictures: int
    repeats: int = 1
    is_regularisation: bool = False
    tags: Mapping[str, int] | None = None
    """Tag -> number of captions with it."""


@dataclass(frozen=True)
class DataFacts:
    """The training data, for the metadata."""

    folders: tuple[Folder, ...]
    resolution: int
    """Pixels; the largest of several."""
    buckets: Mapping[tuple[int, int], int]
    """(width, height) -> number of pictures."""
    trigger_word: str = ""
    prior_loss_weight: float = 1.0
    caption_dropout: float = 0.0
    tag_dropout: float = 0.0
    flip: bool = False
    random_crop: bool = False
    shuffle_tags: bool = False
    keep_tokens: int = 0
    masked_loss: bool = False


@dataclass(frozen=True)
class RunFacts:
    """The run that made a LoRA, for the metadata."""

    name: str
    base_version: str
    architecture: str
    prediction: str
    """A key of PREDICTIONS."""
    step: int
    """Optimizer steps done."""
    total_steps: int
    epoch: int
    """Passes over the data begun."""
    epochs: int
    """Passes over the data planned."""
    started_at: float
    """Seconds since 1970."""
    ended_at: float
    precision: str = ""
    """Arithmetic of the base model: bf16, fp16 or fp32; empty = the config's."""
    base_name: str = ""
    """File of the base model; empty = unknown."""
    clip_skip: int = 0
    """0 = the model's default."""
    session: str = ""
    """Id shared by all files of a run; empty = not written."""


def lora_metadata(config: LoRAConfig, run: RunFacts, data: DataFacts) -> dict[str, str]:
    """Metadata of a trained LoRA: kohya's `ss_*`, ModelSpec 1.0.1, and our `kiln_*`; all values are strings."""
    adapter = config.adapter
    objective = config.objective
    optimization = config.optimization
    subjects = [folder for folder in data.folders if not folder.is_regularisation]
    priors = [folder for folder in data.folders if folder.is_regularisation]
    bucket_info = {
        "buckets": {
            str(index): {"resolution": list(size), "count": count}
            for index, (size, count) in enumerate(data.buckets.items())
        }
    }
    warmup = optimization.warmup_steps(run.total_steps)
    scheduler = "constant_with_warmup" if optimization.scheduler == "constant" and warmup else optimization.scheduler
    is_robust = objective.loss != "l2"
    flat = config.flat()
    values = {
        "ss_base_model_version": run.base_version,
        "ss_sd_model_name": run.base_name or None,
        "ss_v2": run.base_version == "sd_v2",
        "ss_clip_skip": run.clip_skip or None,
        "ss_network_module": _network_module(config, run.base_version),
        "ss_network_dim": adapter.rank,
        "ss_network_alpha": adapter.alpha,
        "ss_network_dropout": adapter.dropout or None,
        "ss_network_args": json.dumps(_network_args(config)),
        "ss_output_name": run.name,
        "ss_session_id": run.session or None,
        "ss_learning_rate": optimization.learning_rate,
        "ss_unet_lr": optimization.learning_rate,
        "ss_text_encoder_lr": optimization.text_encoder_learning_rate,
        "ss_optimizer": _optimizer(config),
        "ss_lr_scheduler": scheduler,
        "ss_lr_warmup_steps": warmup,
        "ss_lr_scheduler_num_cycles": optimization.scheduler_cycles if scheduler == "cosine_with_restarts" else None,
        "ss_lr_scheduler_power": optimization.scheduler_power if scheduler == "polynomial" else None,
        "ss_steps": run.step,
        "ss_max_train_steps": run.total_steps,
        "ss_epoch": run.epoch,
        "ss_num_epochs": run.epochs,
        "ss_batch_size_per_device": optimization.batch_size,
        "ss_total_batch_size": optimization.batch_size * optimization.gradient_accumulation,
        "ss_gradient_accumulation_steps": optimization.gradient_accumulation,
        "ss_gradient_checkpointing": config.run.gradient_checkpointing,
        "ss_fp8_base": config.run.base_precision != "as loaded",
        "ss_max_grad_norm": optimization.max_grad_norm,
        "ss_min_snr_gamma": objective.min_snr_gamma or None,
        "ss_debiased_estimation": objective.debiased_estimation,
        "ss_loss_type": objective.loss,
        "ss_huber_c": objective.huber_c if is_robust else None,
        "ss_huber_schedule": objective.huber_schedule if is_robust else None,
        "ss_masked_loss": data.masked_loss,
        "ss_noise_offset": objective.noise_offset or None,
        "ss_multires_noise_iterations": objective.multires_noise_iterations or None,
        "ss_multires_noise_discount": objective.multires_noise_discount
        if objective.multires_noise_iterations
        else None,
        "ss_ip_noise_gamma": objective.ip_noise_gamma or None,
        "ss_zero_terminal_snr": objective.zero_terminal_snr,
        **_timesteps(config, run.prediction),
        "ss_prior_loss_weight": data.prior_loss_weight,
        "ss_seed": config.run.seed,
        "ss_mixed_precision": {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}.get(run.precision or config.run.precision),
        "ss_resolution": f"({data.resolution}, {data.resolution})",
        "ss_enable_bucket": True,
        "ss_num_train_images": sum(folder.pictures * folder.repeats for folder in subjects),
        "ss_num_reg_images": sum(folder.pictures * folder.repeats for folder in priors),
        "ss_caption_dropout_rate": data.caption_dropout,
        "ss_caption_tag_dropout_rate": data.tag_dropout,
        "ss_flip_aug": data.flip,
        "ss_random_crop": data.random_crop,
        "ss_shuffle_caption": data.shuffle_tags,
        "ss_keep_tokens": data.keep_tokens,
        "ss_bucket_info": json.dumps(bucket_info),
        "ss_dataset_dirs": json.dumps(_folder_counts(subjects)),
        "ss_reg_dataset_dirs": json.dumps(_folder_counts(priors)),
        "ss_tag_frequency": json.dumps(_tag_frequency(subjects)),
        "ss_datasets": json.dumps([_dataset(config, data, bucket_info)]),
        "ss_training_started_at": run.started_at,
        "ss_training_finished_at": run.ended_at,
        **{f"{OWN}{name}": flat[name] for name in OWN_FIELDS},
        **_modelspec(config, run, data),
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def implementation(architecture: str, form: str) -> str:
    """modelspec.implementation: the code whose module names the keys follow.

    Args:
        architecture: modelspec.architecture.
        form: format of the keys, one of export.FORMATS.
    """
    if form == "diffusers":
        return "diffusers"
    family = host.family_of_architecture(architecture) if form == "kohya" else None
    return (family.implementation if family else "") or COMFYUI


def _timesteps(config: LoRAConfig, prediction: str) -> dict[str, str | float | None]:
    """Timestep density and shift. kohya's logit_mean has the opposite sign: its time runs from noise to picture."""
    objective = config.objective
    density = objective.timestep_sampling
    if density == "auto":
        density = PREDICTIONS[prediction].usual_sampling
        density = "" if density == "uniform" else density  # kohya's own default
    return {
        "ss_timestep_sampling": DENSITIES.get(density),
        "ss_logit_mean": -objective.logit_mean or None,
        "ss_logit_std": objective.logit_std if objective.logit_std != 1.0 else None,
        "ss_discrete_flow_shift": objective.timestep_shift or None,
    }


def _network_module(config: LoRAConfig, base_version: str) -> str:
    module = LYCORIS if config.adapter.rslora else KINDS[config.adapter.kind].names.network_module
    family = host.family_of_version(base_version)
    return family.network_module if family and module == KOHYA else module


def _network_args(config: LoRAConfig) -> dict[str, str]:
    """Arguments of kohya's and LyCORIS' networks besides rank and alpha; strings, as on a command line."""
    adapter = config.adapter
    kind = KINDS[adapter.kind]
    has_convolutions = "convolution" in adapter.targets
    values = {
        "algo": next(iter(kind.names.lycoris), adapter.kind) if _network_module(config, "") == LYCORIS else None,
        **kind.names.lycoris_arguments,
        "rs_lora": True if adapter.rslora else None,
        "factor": adapter.lokr_factor if kind.takes_factor else None,
        "conv_dim": (adapter.conv_rank or adapter.rank) if has_convolutions else None,
        "conv_alpha": (adapter.conv_alpha or adapter.alpha) if has_convolutions else None,
        "rank_dropout": adapter.rank_dropout or None,
        "module_dropout": adapter.module_dropout or None,
        "targets": adapter.targets,
        "layer_rules": adapter.layer_rules.strip() or None,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _optimizer(config: LoRAConfig) -> str:
    optimization = config.optimization
    settings = [f"weight_decay={optimization.weight_decay}", *optimization.optimizer_args.split()]
    return f"{optimization.optimizer_kind.name_in_files}({','.join(settings)})"


def _folder_counts(folders: list[Folder]) -> dict[str, dict[str, int]]:
    return {folder.name: {"n_repeats": folder.repeats, "img_count": folder.pictures} for folder in folders}


def _tag_frequency(folders: list[Folder]) -> dict[str, dict[str, int]]:
    return {folder.name: dict(folder.tags or {}) for folder in folders}


def _dataset(config: LoRAConfig, data: DataFacts, bucket_info: dict[str, Any]) -> dict[str, Any]:
    """One entry of ss_datasets."""
    subjects = [folder for folder in data.folders if not folder.is_regularisation]
    return {
        "is_dreambooth": True,
        "batch_size_per_device": config.optimization.batch_size,
        "num_train_images": sum(folder.pictures * folder.repeats for folder in subjects),
        "num_reg_images": sum(f.pictures * f.repeats for f in data.folders if f.is_regularisation),
        "resolution": [data.resolution, data.resolution],
        "enable_bucket": True,
        "tag_frequency": _tag_frequency(subjects),
        "bucket_info": bucket_info,
        "subsets": [
            {
                "image_dir": folder.name,
                "img_count": folder.pictures,
                "num_repeats": folder.repeats,
                "is_reg": folder.is_regularisation,
                "flip_aug": data.flip,
                "random_crop": data.random_crop,
                "shuffle_caption": data.shuffle_tags,
                "keep_tokens": data.keep_tokens,
            }
            for folder in data.folders
        ],
    }


def _modelspec(config: LoRAConfig, run: RunFacts, data: DataFacts) -> dict[str, str | None]:
    """Stability AI's ModelSpec 1.0.1."""
    is_part = (config.objective.min_timestep, config.objective.max_timestep) != (0, 1000)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{run.architecture}/lora",
        "modelspec.implementation": implementation(run.architecture, "kohya"),
        "modelspec.title": run.name,
        "modelspec.date": datetime.fromtimestamp(run.ended_at, timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{data.resolution}x{data.resolution}",
        "modelspec.trigger_phrase": data.trigger_word or None,
        "modelspec.prediction_type": PREDICTIONS[run.prediction].modelspec_name,
        "modelspec.timestep_range": f"{config.objective.min_timestep},{config.objective.max_timestep - 1}"
        if is_part
        else None,
        "modelspec.encoder_layer": str(run.clip_skip) if run.clip_skip else None,
    }
