"""The saved LoRA: its form and number format, metadata, and the file."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file

from . import host
from .adapters import EXACT, Adapter
from .config import LoRAConfig
from .host import LayerNames
from .lora_keys import ALPHA, DOWN, ENTRIES, UP, Layers, layers_of, scale_of
from .problems import InputError, raise_if_any

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FORMATS = ("kohya", "diffusers", "comfyui")
AS_TRAINED = "as trained"
LARGEST_HEADER = 4 * 2**20
"""bytes; the page opens a workflow only from a file whose header is below this"""
LISTED = 5


class LoRAModel(dict[str, torch.Tensor]):
    """A LoRA as the graph passes it on: a state dict, its metadata, and what other files call its layers."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        metadata: Mapping[str, str],
        name: str,
        layers: Mapping[str, LayerNames] | None = None,
    ):
        super().__init__(tensors)
        self.metadata = dict(metadata)
        self.name = name
        self.layers = dict(layers or {})
        """kohya name -> names; empty where they are not known"""


@dataclass(frozen=True)
class Folder:
    """A folder of pictures, as the file tells of it."""

    name: str
    pictures: int
    repeats: int = 1
    is_regularisation: bool = False
    tags: Mapping[str, int] | None = None
    """tag -> captions that hold it"""


@dataclass(frozen=True)
class DataFacts:
    """What a file says about the pictures it was trained on."""

    folders: tuple[Folder, ...]
    resolution: int
    """pixels; the largest, where there are several"""
    buckets: Mapping[tuple[int, int], int]
    """(width, height) -> pictures"""
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
    """What a file says about the run that made it."""

    name: str
    base_version: str
    architecture: str
    prediction: str
    """eps, v or flow"""
    step: int
    """optimizer steps done"""
    total_steps: int
    epoch: int
    """passes over the data begun"""
    epochs: int
    """passes over the data planned"""
    started_at: float
    """seconds since 1970"""
    ended_at: float
    precision: str = ""
    """arithmetic of the base model, bf16 or fp32; empty = as the recipe says"""
    base_name: str = ""
    """file of the base model, where it is known"""
    clip_skip: int = 0
    """0 = the model's own"""


# ---------------------------------------------------------------- tensors


def lora_tensors(
    adapters: Mapping[str, Adapter], names: Mapping[str, LayerNames], precision: str
) -> dict[str, torch.Tensor]:
    """kohya's state dict, such as `<name>.lora_down.weight`, `.lora_up.weight`, `.alpha`, on the CPU.

    A tensor that fp16 cannot hold stays float32, and the log says so: what was trained is not lost.

    Args:
        adapters: by state-dict key of the base weight.
        names: by state-dict key.
        precision: one of DTYPES.
    """
    tensors = {
        f"{names[key].kohya}.{entry}": tensor.detach().cpu()
        for key, adapter in adapters.items()
        for entry, tensor in adapter.tensors().items()
    }
    cast = {key: _cast(key, tensor, DTYPES[precision]) for key, tensor in tensors.items()}
    too_large = [key for key in tensors if _overflows(tensors[key], cast[key])]
    if too_large:
        host.say(
            "%d tensors of the LoRA are too large for %s and stay fp32: %s", len(too_large), precision, too_large[0]
        )
    return cast | {key: tensors[key].float().clone() for key in too_large}


def as_format(
    lora: Mapping[str, torch.Tensor],
    form: str,
    names: Mapping[str, LayerNames] | None = None,
    precision: str = AS_TRAINED,
) -> LoRAModel:
    """A LoRA with the keys of another form.

    Args:
        lora: with keys of any form.
        form: one of FORMATS. "kohya" is what most trainers write; "diffusers" is peft's: `unet.<path>.lora_A.weight`
            and `lora_B.weight`, with the scale inside lora_B and fused layers split; "comfyui" is the host's trainer's.
        names: of the model that the LoRA is for, by state-dict key; not needed where the LoRA knows its layers or
            has the form already.
        precision: AS_TRAINED or one of DTYPES.

    Raises:
        InputError: the layers are not known, the form cannot hold the LoRA, or the number format its values.
    """
    _check_choice("format", form, FORMATS)
    known = list(names.values()) if names else list(getattr(lora, "layers", {}).values())
    converted = dict(lora) if _has_form(lora, form) else _converted(lora, form, known)
    metadata = dict(getattr(lora, "metadata", {}))
    if "modelspec.architecture" in metadata:
        metadata["modelspec.implementation"] = implementation(metadata["modelspec.architecture"], form)
    if converted.keys() != lora.keys():
        metadata.pop("lora_adapter_metadata", None)  # diffusers' own: ranks and alphas of the keys as they were
    layers = {layer.kohya: layer for layer in known}
    trained = None if converted.keys() == lora.keys() else _usual_dtype(lora)
    return in_precision(LoRAModel(converted, metadata, getattr(lora, "name", ""), layers), precision, trained)


def in_precision(lora: Mapping[str, torch.Tensor], precision: str, trained: torch.dtype | None = None) -> LoRAModel:
    """A LoRA with its keys as they are and its numbers in another format, on the CPU.

    Args:
        precision: AS_TRAINED or one of DTYPES.
        trained: what AS_TRAINED means; the numbers' own format by default.

    Raises:
        InputError: the number format cannot hold the values.
    """
    _check_choice("precision", precision, (AS_TRAINED, *DTYPES))
    dtype = DTYPES.get(precision, trained)
    tensors = {key: _cast(key, tensor, dtype or tensor.dtype) for key, tensor in lora.items()}
    too_large = [key for key, tensor in lora.items() if _overflows(tensor, tensors[key])]
    if too_large:
        problem = (
            f"precision is {precision}, which cannot hold the values of {_listed(too_large)}: choose bf16 or fp32."
        )
        raise InputError("Save LoRA", [problem])
    layers, name = getattr(lora, "layers", {}), getattr(lora, "name", "")
    return LoRAModel(tensors, getattr(lora, "metadata", {}), name, layers)


def knows_layers(lora: Mapping[str, torch.Tensor], form: str, names: Mapping[str, LayerNames] | None = None) -> bool:
    """Whether as_format has what it needs: the layers' names, or the form already."""
    return bool(names or getattr(lora, "layers", None)) or _has_form(lora, form)


def _converted(lora: Mapping[str, torch.Tensor], form: str, known: list[LayerNames]) -> dict[str, torch.Tensor]:
    if not known:
        problem = (
            f"format is {form}, but this LoRA does not say which layers it is for: "
            "connect the model (and clip) that it was trained on."
        )
        raise InputError("Save LoRA", [problem])
    found = layers_of(lora, known)
    if found.unknown:
        problem = (
            f"lora holds {_listed(found.unknown)}, which the model (and clip) does not have or which cannot be read: "
            "connect those that it was trained on."
        )
        raise InputError("Save LoRA", [problem])
    by_name = {layer.kohya: layer for layer in known}
    if form == "diffusers":
        _check_peft(found, by_name)
        tensors: dict[str, torch.Tensor] = {}
        for kohya, entries in found.entries.items():
            tensors |= _peft_tensors(entries, by_name[kohya])
        return tensors
    tensors = dict(found.parts)  # have no name in this form; the host reads them as they are
    for kohya, entries in found.entries.items():
        prefix = kohya if form == "kohya" else by_name[kohya].comfy
        tensors |= {f"{prefix}.{entry}": tensor for entry, tensor in entries.items()}
        if DOWN in entries and ALPHA not in entries:
            tensors[f"{prefix}.{ALPHA}"] = torch.tensor(float(entries[DOWN].shape[0]))
    return tensors


def _check_peft(found: Layers, by_name: Mapping[str, LayerNames]) -> None:
    plain = [kohya for kohya, entries in found.entries.items() if {DOWN, UP} <= set(entries) <= {DOWN, UP, ALPHA}]
    others = [*found.parts, *(kohya for kohya in found.entries if kohya not in plain)]
    nameless = [kohya for kohya in plain if not by_name[kohya].diffusers]
    problems = []
    if others:
        problems.append(
            "format is diffusers, which holds plain LoRA alone (no DoRA, LoHa, LoKr, OFT or differences), "
            f"but lora has {_listed(others)}: choose kohya or comfyui."
        )
    if nameless:
        problems.append(
            f"format is diffusers, but diffusers has no name for {_listed(nameless)}: choose kohya or comfyui."
        )
    raise_if_any("Save LoRA", problems)


def _peft_tensors(entries: Mapping[str, torch.Tensor], layer: LayerNames) -> dict[str, torch.Tensor]:
    """lora_A and lora_B of each part of a layer; the scale is in lora_B."""
    scale = scale_of(entries)
    up = entries[UP] if scale == 1.0 else entries[UP].float() * scale
    rows: dict[str, list[torch.Tensor]] = {}
    for path, start, length in layer.diffusers:
        rows.setdefault(path, []).append(up[start : start + length])
    tensors = {}
    for path, parts in rows.items():
        tensors[f"{path}.lora_A.weight"] = entries[DOWN].clone()
        tensors[f"{path}.lora_B.weight"] = torch.cat(parts)
    return tensors


def _has_form(lora: Mapping[str, torch.Tensor], form: str) -> bool:
    if form == "diffusers":
        return all(re.fullmatch(r"(unet|transformer|text_encoder(_\d)?)\..+\.lora_[AB]\.weight", key) for key in lora)
    starts = ("lora_unet_", "lora_te") if form == "kohya" else ("diffusion_model.", "text_encoders.")
    return all(key.startswith(starts) and key.endswith(tuple(f".{entry}" for entry in ENTRIES)) for key in lora)


def _usual_dtype(lora: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The number format of most of the LoRA's values."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in lora.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def _cast(key: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy on the CPU; alphas, DoRA's magnitudes and whole numbers keep their own format."""
    keeps = key.rpartition(".")[2] in EXACT or not tensor.is_floating_point()
    return tensor.detach().to("cpu", tensor.dtype if keeps else dtype, copy=True)


def _overflows(before: torch.Tensor, after: torch.Tensor) -> bool:
    return bool(before.isfinite().all()) and not bool(after.float().isfinite().all())


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more


def _check_choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError("Save LoRA", [f"{field} is {value!r}; choose one of: {', '.join(allowed)}."])


# ---------------------------------------------------------------- metadata


def lora_metadata(config: LoRAConfig, run: RunFacts, data: DataFacts) -> dict[str, str]:
    """What UIs and trainers read about a LoRA: kohya's `ss_*` and ModelSpec 1.0.1; all values are strings."""
    subjects = [folder for folder in data.folders if not folder.is_regularisation]
    priors = [folder for folder in data.folders if folder.is_regularisation]
    bucket_info = {
        "buckets": {
            str(index): {"resolution": list(size), "count": count}
            for index, (size, count) in enumerate(data.buckets.items())
        }
    }
    warmup = config.warmup_steps(run.total_steps)
    scheduler = "constant_with_warmup" if config.scheduler == "constant" and warmup else config.scheduler
    is_robust = config.loss != "l2"
    values = {
        "ss_base_model_version": run.base_version,
        "ss_sd_model_name": run.base_name or None,
        "ss_v2": run.base_version == "sd_v2",
        "ss_clip_skip": run.clip_skip or None,
        "ss_network_module": _network_module(config, run.base_version),
        "ss_network_dim": config.rank,
        "ss_network_alpha": config.alpha,
        "ss_network_dropout": config.dropout or None,
        "ss_network_args": json.dumps(_network_args(config)),
        "ss_output_name": run.name,
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_text_encoder_lr": config.text_encoder_learning_rate,
        "ss_optimizer": _optimizer(config),
        "ss_lr_scheduler": scheduler,
        "ss_lr_warmup_steps": warmup,
        "ss_lr_scheduler_num_cycles": config.scheduler_cycles if scheduler == "cosine_with_restarts" else None,
        "ss_lr_scheduler_power": config.scheduler_power if scheduler == "polynomial" else None,
        "ss_steps": run.step,
        "ss_max_train_steps": run.total_steps,
        "ss_epoch": run.epoch,
        "ss_num_epochs": run.epochs,
        "ss_batch_size_per_device": config.batch_size,
        "ss_total_batch_size": config.batch_size * config.gradient_accumulation,
        "ss_gradient_accumulation_steps": config.gradient_accumulation,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_min_snr_gamma": config.min_snr_gamma or None,
        "ss_debiased_estimation": config.debiased_estimation,
        "ss_loss_type": config.loss,
        "ss_huber_c": config.huber_c if is_robust else None,
        "ss_huber_schedule": config.huber_schedule if is_robust else None,
        "ss_masked_loss": data.masked_loss,
        "ss_noise_offset": config.noise_offset or None,
        "ss_multires_noise_iterations": config.multires_noise_iterations or None,
        "ss_multires_noise_discount": config.multires_noise_discount if config.multires_noise_iterations else None,
        "ss_ip_noise_gamma": config.ip_noise_gamma or None,
        "ss_zero_terminal_snr": config.zero_terminal_snr,
        "ss_prior_loss_weight": data.prior_loss_weight,
        "ss_seed": config.seed,
        "ss_mixed_precision": {"fp32": "no", "bf16": "bf16"}.get(run.precision or config.precision),
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
        **_modelspec(config, run, data),
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def implementation(architecture: str, form: str) -> str:
    """Whose names the keys follow (modelspec.implementation): diffusers', or those of the model's first code."""
    first_code = {
        "stable-diffusion-xl": "https://github.com/Stability-AI/generative-models",
        "stable-diffusion-3": "https://github.com/Stability-AI/sd3.5",
        "flux-1": "https://github.com/black-forest-labs/flux",
        "flux-2": "https://github.com/black-forest-labs/flux2",
        "stable-diffusion-v": "diffusers",
    }
    if form == "diffusers":
        return "diffusers"
    comfy = "https://github.com/comfyanonymous/ComfyUI"
    if form == "comfyui":
        return comfy
    return next((code for start, code in first_code.items() if architecture.startswith(start)), comfy)


def workflow_metadata(prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """What lets the page open the graph from the file.

    Args:
        prompt: the graph in API form, as the host hands it to a node; None where there is none.
        extra: the host's EXTRA_PNGINFO; the page puts the workflow there.
    """
    own = {"is_changed"}  # the host's notes on its cache, which may be NaN and so no JSON
    nodes = {id_: {key: node[key] for key in node.keys() - own} for id_, node in (prompt or {}).items()}
    values = {"workflow": (extra or {}).get("workflow"), "prompt": nodes}
    return {key: json.dumps(value) for key, value in values.items() if value}


def header_size(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> int:
    """Bytes of a safetensors header, or some more."""
    entries = {
        key: {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [2**40] * 2} for key, t in tensors.items()
    }
    return 8 + len(json.dumps({"__metadata__": dict(metadata), **entries}, ensure_ascii=False).encode())


def _network_module(config: LoRAConfig, base_version: str) -> str:
    if config.adapter != "lora" or config.rslora:
        return "lycoris.kohya"
    return {"flux1": "networks.lora_flux", "sd3": "networks.lora_sd3"}.get(base_version.split("_")[0], "networks.lora")


def _network_args(config: LoRAConfig) -> dict[str, str]:
    """What kohya's and LyCORIS' networks take beyond rank and alpha; all values are strings, as on a command line."""
    algorithms = {"lora": "locon", "dora": "locon", "loha": "loha", "lokr": "lokr", "oft": "diag-oft"}
    has_convolutions = config.targets == "all linear and convolution"
    values = {
        "algo": algorithms[config.adapter] if _network_module(config, "") == "lycoris.kohya" else None,
        "dora_wd": True if config.adapter == "dora" else None,
        "rs_lora": True if config.rslora else None,
        "factor": config.lokr_factor if config.adapter == "lokr" else None,
        "conv_dim": (config.conv_rank or config.rank) if has_convolutions else None,
        "conv_alpha": (config.conv_alpha or config.alpha) if has_convolutions else None,
        "rank_dropout": config.rank_dropout or None,
        "module_dropout": config.module_dropout or None,
        "targets": config.targets,
        "layer_rules": config.layer_rules.strip() or None,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _optimizer(config: LoRAConfig) -> str:
    usual = {
        "adamw": "AdamW", "adamw8bit": "AdamW8bit", "adafactor": "AdaFactor", "lion": "Lion", "prodigy": "Prodigy",
        "schedule_free": "AdamWScheduleFree",
    }  # fmt: skip
    settings = [f"weight_decay={config.weight_decay:g}", *config.optimizer_args.split()]
    return f"{usual.get(config.optimizer, config.optimizer)}({','.join(settings)})"


def _folder_counts(folders: list[Folder]) -> dict[str, dict[str, int]]:
    return {folder.name: {"n_repeats": folder.repeats, "img_count": folder.pictures} for folder in folders}


def _tag_frequency(folders: list[Folder]) -> dict[str, dict[str, int]]:
    return {folder.name: dict(folder.tags or {}) for folder in folders}


def _dataset(config: LoRAConfig, data: DataFacts, bucket_info: dict[str, Any]) -> dict[str, Any]:
    """One entry of ss_datasets."""
    subjects = [folder for folder in data.folders if not folder.is_regularisation]
    return {
        "is_dreambooth": True,
        "batch_size_per_device": config.batch_size,
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
    is_part = (config.min_timestep, config.max_timestep) != (0, 1000)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{run.architecture}/lora",
        "modelspec.implementation": implementation(run.architecture, "kohya"),
        "modelspec.title": run.name,
        "modelspec.date": datetime.fromtimestamp(run.ended_at, timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{data.resolution}x{data.resolution}",
        "modelspec.trigger_phrase": data.trigger_word or None,
        "modelspec.prediction_type": {"eps": "epsilon", "v": "v"}.get(run.prediction),
        "modelspec.timestep_range": f"{config.min_timestep},{config.max_timestep - 1}" if is_part else None,
        "modelspec.encoder_layer": str(run.clip_skip) if run.clip_skip else None,
    }


def file_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The sums by which UIs recognise a LoRA, as sshs_* and modelspec.hash_sha256.

    sshs_model_hash is the SHA-256 of all that follows the file's header. sshs_legacy_hash looks at 64 KiB from
    1 MiB on, in the file as it is with `ss_*` metadata alone.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = memoryview(save({key: tensor.contiguous() for key, tensor in tensors.items()}, training))
    header = 8 + int.from_bytes(content[:8], "little")
    data_hash = hashlib.sha256(content[header:]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    hashes = {"sshs_model_hash": data_hash, "sshs_legacy_hash": legacy}
    if "modelspec.sai_model_spec" in metadata:
        hashes["modelspec.hash_sha256"] = f"0x{data_hash}"
    return hashes


# ---------------------------------------------------------------- the file


def save_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes a .safetensors file whole or not at all, and never over another file; its hashes join the metadata.

    Args:
        path: wanted file; a number is added to the name where it is taken.

    Returns:
        The file written.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    partial = None
    try:
        path = free_path(path)
        partial = path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        save_file(whole, partial, {**metadata, **file_hashes(whole, metadata)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise_if_any(
            "Save LoRA",
            [
                f"{path} could not be written ({error}). "
                "Make room or set the folder's rights and queue again: the LoRA itself is not lost."
            ],
        )
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink()
    return path


def free_path(path: Path) -> Path:
    """The path itself, or with _2, _3 ... before its ending where that is taken."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return candidate


def check_name(name: str, field: str, subject: str) -> str:
    """A file name, maybe with folders, that stays inside its root.

    Raises:
        InputError: empty, absolute, or with characters that no file should have.
    """
    cleaned = name.strip().removesuffix(".safetensors")
    parts = [part.strip() for part in cleaned.split("/")]
    is_good = all(part.strip(".") and not re.search(r'[\\:*?"<>|\x00-\x1f]', part) for part in parts)
    if not is_good:
        problem = (
            f"{field} is {name!r}; it must be a file name, maybe with folders before it (as in 'people/anna'), "
            r'without .. and without \ : * ? " < > |.'
        )
        raise_if_any(subject, [problem])
    return "/".join(parts)
