"""Writing a LoRA to a file that does not replace another."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .. import host
from ..basics.errors import InputError, raise_if_any
from ..basics.files import atomic_write
from ..basics.paths import PathRefused, check_parts, resolve
from .metadata import file_hashes


def save_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes a .safetensors file whole or not at all, and never over another file; its hashes join the metadata.

    Args:
        path: wanted file; a number is added to the name where it is taken.

    Returns:
        The file written.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    try:
        path = free_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        ours = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        with atomic_write(path) as unfinished:
            save_file(ours, unfinished, {**metadata, **file_hashes(ours, metadata)})
    except (OSError, SafetensorError) as error:
        raise_if_any(
            "Save LoRA",
            [
                f"{path} could not be written ({error}). "
                "Make room or set the folder's rights and queue again: the LoRA itself is not lost."
            ],
        )
    return path


def free_path(path: Path) -> Path:
    """The path itself, or with _2, _3 ... before its ending where that is taken."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
    return candidate


def check_name(name: str, field: str, subject: str) -> str:
    """A file name, maybe with folders, that stays inside the LoRA folder.

    Raises:
        InputError: empty, absolute, a link out of the folder, or with characters that no file should have.
    """
    cleaned = name.strip().removesuffix(".safetensors") if isinstance(name, str) else name
    folder = host.lora_folder()
    try:
        cleaned = "/".join(check_parts(cleaned))
        resolve(cleaned, [folder])
    except PathRefused as error:
        raise InputError(subject, [f"{field} is {name!r:.200}, {error}"]) from None
    return cleaned
