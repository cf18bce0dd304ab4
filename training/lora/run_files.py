"""LoRA files that a run wrote: earlier steps of a LoRA, and partial LoRAs of a stopped run."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from ..basics.errors import InputError
from ..basics.files import delete
from .header import read_header

PARTIAL = "-partial"
"""End of the file name of a LoRA that a stopped run has written."""
LONGEST_END = f"-step{10**6}{PARTIAL}_2"
"""The longest that usually follows a run's name in the names of its files, but the ending."""


def earlier_files(lora: Mapping[str, torch.Tensor], files: Mapping[str, Path]) -> dict[int, Path]:
    """Files of earlier steps from the same run as a LoRA: step -> path, in ascending order.

    They are recognised by metadata of kohya's trainers and this one: output name, session and step.

    Args:
        files: candidates, by the host's names.
    """
    known: Mapping[str, str] = getattr(lora, "metadata", {})
    name, session, last = known.get("ss_output_name"), known.get("ss_session_id"), step_of(known)
    if not name or not session or last is None:
        return {}
    found = {}
    first = _last_part(name)
    for file, path in files.items():
        if not _last_part(file).startswith(first):
            continue
        try:
            metadata = read_header(path).metadata
        except InputError:
            continue
        step = step_of(metadata)
        if metadata.get("ss_session_id") == session and step is not None and step < last:
            found[step] = path
    return dict(sorted(found.items()))


def delete_partials(folder: Path, name: str, session: str, but: Path | None = None) -> list[Path]:
    """Deletes the partial LoRAs that a run wrote when it was stopped, and returns their paths.

    Files of other runs, renamed files and unreadable files are not deleted.

    Args:
        name: of the run's LoRA, may contain folders.
        session: id of the run.
        but: a file to keep.
    """
    parent = (folder / name).parent
    partial_name = re.compile(rf"{re.escape(_last_part(name))}-step\d+{PARTIAL}(_\d+)?\.safetensors")
    deleted = []
    with suppress(OSError):
        for path in sorted(parent.iterdir()):
            if partial_name.fullmatch(path.name) and path != but:
                with suppress(InputError, OSError):
                    if read_header(path).metadata.get("ss_session_id") == session:
                        delete(path)
                        deleted.append(path)
    return deleted


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def step_of(metadata: Mapping[str, str]) -> int | None:
    """The number of optimizer steps in a LoRA's metadata; None if it is missing."""
    text = metadata.get("ss_steps", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
