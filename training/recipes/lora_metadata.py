"""The metadata of a LoRA file: ss_* keys as sd-scripts and our own export write them, all values as text."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..lora.metadata import OWN
from . import sd_scripts
from .ledger import Entry, Ledger, is_unset
from .recipe import Recipe
from .techniques import split_arguments

SOURCE = "metadata of a LoRA"
RENAMED = {
    "batch_size_per_device": "train_batch_size",
    "debiased_estimation": "debiased_estimation_loss",
}
FACTS = "what the run was, not how it was set"
PICTURES = "the pictures of that run"
FILE = "the file itself"
ABOUT_RUN = (
    *("session_id", "training_started_at", "training_finished_at", "steps", "epoch", "num_epochs", "total_batch_size"),
    *("num_train_images", "num_validation_images", "num_reg_images", "num_batches_per_epoch", "sd_scripts_commit_hash"),
    *("sd_model_name", "sd_model_hash", "new_sd_model_hash", "vae_name", "vae_hash", "new_vae_hash", "output_name"),
    *("base_model_version", "v2", "training_comment", "lowram", "cache_latents", "text_encoder_name"),
)
ABOUT_PICTURES = ("tag_frequency", "dataset_dirs", "reg_dataset_dirs", "bucket_info", "datasets")
ABOUT_FILE = ("format", "workflow", "prompt", "software", "name", "version", "training_info", "lora_adapter_metadata")
IN_DATASETS = {
    "batch_size_per_device": "train_batch_size",
    "resolution": "resolution",
    "enable_bucket": "enable_bucket",
    "min_bucket_reso": "min_bucket_reso",
    "max_bucket_reso": "max_bucket_reso",
    "bucket_no_upscale": "bucket_no_upscale",
}
IN_SUBSETS = (
    *("flip_aug", "random_crop", "shuffle_caption", "keep_tokens", "color_aug", "caption_dropout_rate"),
    *("caption_tag_dropout_rate", "caption_prefix", "caption_suffix"),
)
"""Settings that are in ss_datasets if the run had a dataset file."""


def is_header(content: Mapping[str, Any]) -> bool:
    """Whether a table is the header of a safetensors file."""
    return isinstance(content.get("__metadata__"), dict)


def read_header(content: Mapping[str, Any]) -> Recipe:
    """Converts the metadata in a header, which names the file's tensors too."""
    return read(content["__metadata__"], [key for key in content if key != "__metadata__"])


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table is a LoRA's metadata."""
    return any(key.startswith(("ss_", "modelspec.")) for key in content)


def read(metadata: Mapping[str, Any], layers: Iterable[str] | None = None) -> Recipe:
    """Converts the metadata of a file.

    Args:
        layers: names of the file's tensors, from which it follows whether text encoders were trained; None = unknown.
    """
    entries: dict[str, Entry] = {}
    for key, value in metadata.items():
        name = key.removeprefix("ss_") if key.startswith(("ss_", OWN)) else f"file.{key}"
        entries[RENAMED.get(name, name)] = Entry(key, value)
    _network_args(entries)
    _optimizer(entries)
    _datasets(entries)
    _modelspec(entries)
    dynamic = [entries.pop(name).path for name in ("network_dim", "network_alpha") if _is_dynamic(entries.get(name))]
    trains_text = None if layers is None else any(_is_text(name) for name in layers)
    if trains_text is False:
        entries["network_train_unet_only"] = Entry("the file's layers", True, is_made_up=True)
    book = Ledger(entries, has_defaults=False)
    if trains_text is None and book.value("text_encoder_lr") is None and book.has("learning_rate"):
        book.note("text_encoder_lr", "whether the text encoders were trained does not stand there; taken as trained")
    for path in dynamic:
        book.note(f'{path} = "Dynamic"', "each layer has its own, as after a merge; the config holds our default")
    for name in book.names():
        plain = name.removeprefix("file.")
        if name in ABOUT_RUN:
            book.ignore(name, FACTS)
        elif name in ABOUT_PICTURES:
            book.ignore(name, PICTURES)
        elif name.startswith("file.") and (plain in ABOUT_FILE or plain.startswith(("sshs_", "modelspec."))):
            book.ignore(name, FILE)
    sd_scripts.carry(book)
    return book.recipe(SOURCE)


def _network_args(entries: dict[str, Entry]) -> None:
    """ss_network_args is a JSON table."""
    entry = entries.get("network_args")
    table = _json(entry)
    if entry is not None and isinstance(table, dict):
        del entries["network_args"]
        entries |= {f"network_args.{key}": Entry(f"{entry.path}.{key}", value) for key, value in table.items()}
        if not table:
            entries["network_args"] = Entry(entry.path, None, "{}")


def _optimizer(entries: dict[str, Entry]) -> None:
    """ss_optimizer is a class with its arguments: package.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.99))."""
    entry = entries.pop("optimizer", None)
    if entry is None:
        return
    name, bracket, arguments = str(entry.value).partition("(")
    entries["optimizer_type"] = Entry(entry.path, name.strip(), entry.value)
    if bracket:
        pairs = [part.split("=", 1) for part in split_arguments(arguments.strip().removesuffix(")")) if "=" in part]
        entries |= {
            f"optimizer_args.{key.strip()}": Entry(f"{entry.path}.{key.strip()}", value.strip()) for key, value in pairs
        }


def _datasets(entries: dict[str, Entry]) -> None:
    """Adds settings that are only in ss_datasets, as after a run with a dataset file; of its first data set."""
    table = _json(entries.get("datasets"))
    first = table[0] if isinstance(table, list) and table and isinstance(table[0], dict) else {}
    found = {name: first[key] for key, name in IN_DATASETS.items() if key in first}
    subsets = first.get("subsets")
    if isinstance(subsets, list) and subsets and isinstance(subsets[0], dict):
        found |= {key: subsets[0][key] for key in IN_SUBSETS if key in subsets[0]}
    for name, value in found.items():
        old = entries.get(name)
        if old is None or is_unset(old.value):
            entries[name] = Entry(old.path if old else f"ss_datasets[0].{name}", value)


def _modelspec(entries: dict[str, Entry]) -> None:
    """Adds the range of timesteps and the trigger word from modelspec.* keys."""
    span = entries.get("file.modelspec.timestep_range")
    match = re.fullmatch(r"\s*(\d{1,4})\s*,\s*(\d{1,4})\s*", str(span.value)) if span else None
    if span and match and "min_timestep" not in entries and "max_timestep" not in entries:
        del entries["file.modelspec.timestep_range"]
        entries["min_timestep"] = Entry(span.path, int(match[1]), span.value)
        entries["max_timestep"] = Entry(span.path, int(match[2]) + 1, span.value, is_made_up=True)
    if "file.modelspec.trigger_phrase" in entries:
        entries["trigger_word"] = entries.pop("file.modelspec.trigger_phrase")


def _is_dynamic(entry: Entry | None) -> bool:
    return entry is not None and str(entry.value).strip() == "Dynamic"


def _json(entry: Entry | None) -> Any:
    if entry is None or not isinstance(entry.value, str):
        return None
    try:
        return json.loads(entry.value)
    except (ValueError, RecursionError):
        return None


def _is_text(name: str) -> bool:
    return name.startswith(("lora_te", "text_encoder", "clip_l", "clip_g")) or ".text_model." in name
