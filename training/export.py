"""The saved LoRA: key names, metadata, and the file."""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .attach import Adapter
from .config import LoRAConfig
from .problems import raise_if_any

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class LoRAModel(dict[str, torch.Tensor]):
    """A trained LoRA as the graph passes it on: a state dict with kohya's keys, and its metadata."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], name: str):
        super().__init__(tensors)
        self.metadata = dict(metadata)
        self.name = name


def lora_tensors(
    adapters: Mapping[str, Adapter], names: Mapping[str, str], alpha: float, precision: str
) -> dict[str, torch.Tensor]:
    """kohya's state dict: `<name>.lora_down.weight`, `.lora_up.weight`, `.alpha`, on the CPU.

    Args:
        adapters: by state-dict key of the base weight.
        names: state-dict key -> kohya name.
        precision: one of DTYPES.
    """
    dtype = DTYPES[precision]
    tensors = {}
    for key, adapter in adapters.items():
        tensors[f"{names[key]}.lora_down.weight"] = _saved(adapter.down, dtype)
        tensors[f"{names[key]}.lora_up.weight"] = _saved(adapter.up, dtype)
        tensors[f"{names[key]}.alpha"] = torch.tensor(float(alpha))
    return tensors


def lora_metadata(
    config: LoRAConfig,
    *,
    name: str,
    base_version: str,
    architecture: str,
    prediction: str,
    resolution: int,
    pictures: int,
    prior_pictures: int,
    buckets: Mapping[tuple[int, int], int],
    tag_frequency: Mapping[str, int],
    trigger_word: str,
    dataset_name: str,
    step: int,
    epoch: int,
    started_at: float,
    ended_at: float,
) -> dict[str, str]:
    """What UIs and trainers read about a LoRA; all values are strings.

    Args:
        buckets: (width, height) -> pictures.
        started_at, ended_at: seconds since 1970.
    """
    bucket_info = {
        "buckets": {
            str(index): {"resolution": list(size), "count": count}
            for index, (size, count) in enumerate(buckets.items())
        }
    }
    prediction_types = {"eps": "epsilon", "v": "v"}
    values = {
        "ss_base_model_version": base_version,
        "ss_v2": str(base_version == "sd_v2"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": config.rank,
        "ss_network_alpha": config.alpha,
        "ss_output_name": name,
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": config.learning_rate,
        "ss_optimizer": config.optimizer,
        "ss_lr_scheduler": config.scheduler,
        "ss_steps": step,
        "ss_max_train_steps": step,
        "ss_epoch": epoch,
        "ss_batch_size_per_device": config.batch_size,
        "ss_gradient_accumulation_steps": config.gradient_accumulation,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_min_snr_gamma": config.min_snr_gamma or None,
        "ss_noise_offset": config.noise_offset or None,
        "ss_seed": config.seed,
        "ss_mixed_precision": config.precision,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_num_train_images": pictures,
        "ss_num_reg_images": prior_pictures,
        "ss_bucket_info": json.dumps(bucket_info),
        "ss_tag_frequency": json.dumps({dataset_name: dict(tag_frequency)}),
        "ss_training_started_at": started_at,
        "ss_training_finished_at": ended_at,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "lora-kiln",
        "modelspec.title": name,
        "modelspec.date": datetime.fromtimestamp(ended_at, timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.trigger_phrase": trigger_word or None,
        "modelspec.prediction_type": prediction_types.get(prediction),
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def save_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes a .safetensors file whole or not at all, and never over another file.

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
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, partial, dict(metadata))
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


def _saved(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype, copy=True)
