"""Writing a LoRA to a new file."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .. import host
from ..basics.dates import with_dates
from ..basics.disk_errors import remedy, told_by_library
from ..basics.errors import InputError
from ..basics.files import claim_name, sweep_unfinished, unfinished_file
from ..basics.long_paths import TooLong, try_length
from ..basics.paths import PathRefused, check_parts, folded, resolve
from .header import file_hashes


def save_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes a .safetensors file atomically, without replacing an existing one; its hashes are added to the metadata.

    Args:
        path: a number is added to the name if the file exists.

    Returns:
        The path of the written file.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_unfinished(path.parent)
        ours = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        with unfinished_file(path.parent) as unfinished:
            save_file(ours, unfinished, {**metadata, **file_hashes(ours, metadata)})
            return _named(unfinished, path)
    except (OSError, SafetensorError) as error:
        to_do = remedy(error if isinstance(error, OSError) else told_by_library(error), path.parent)
        problem = f"{path} could not be written ({error}): {to_do}. Then queue again: the LoRA itself is not lost."
        raise InputError("Save LoRA", [problem]) from error


def _named(unfinished: Path, path: Path) -> Path:
    """Gives a whole file the first of `_numbered` that is free, also while other servers take names.

    A name that differs from another in case or Unicode form only is not free: Windows and macOS take both for one.
    """
    taken = {folded(each.name) for each in path.parent.iterdir()}
    for candidate in _numbered(path):
        if folded(candidate.name) in taken:
            continue
        with suppress(FileExistsError):
            claim_name(unfinished, candidate)
            return candidate
    raise AssertionError  # there is always another number


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then with _2, _3 ... before its suffix."""
    yield path
    yield from (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in count(2))


def check_name(name: str, field: str, subject: str, longest_end: str = "_2") -> str:
    """A file name, which may contain folders and dates, filled in and checked to stay inside the LoRA folder.

    Args:
        longest_end: the longest that will follow the name in a file's, but the ending .safetensors.

    Raises:
        InputError: it is empty or absolute, leads out of the folder, is too long for the disk, or has characters that
            are invalid in file names.
    """
    cleaned = name
    if isinstance(name, str):
        cleaned = with_dates(name.strip(), time.localtime()).removesuffix(".safetensors")
    folder = host.lora_folder()
    try:
        cleaned = "/".join(check_parts(cleaned))
        resolve(cleaned, [folder])
        try_length(folder / f"{cleaned}{longest_end}.safetensors")
    except PathRefused as error:
        raise InputError(subject, [f"{field} is {name!r:.200}, {error}"]) from None
    except TooLong as error:
        raise InputError(subject, [f"{field} is {name!r:.200}: {error}"]) from None
    return cleaned
