"""Checkpoints: all that a run needs to go on as if it had never stopped.

A checkpoint is a folder `step000120` with `state.safetensors` (tensors) and `state.json` (all else, with the digest of
the former). It is written under another name and renamed when it is whole, and what was cut off by a crash is known by
its digest, so that one that can be read is whole.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

TENSORS, FACTS = "state.safetensors", "state.json"
FORMAT = 1
NAME = re.compile(r"step(\d{6,12})")
LARGEST_FACTS = 64 * 2**20


class Damaged(ValueError):
    """A checkpoint that cannot be used, and why."""


@dataclass(frozen=True)
class State:
    """A run between two steps."""

    step: int
    """optimizer steps done"""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """plain JSON"""


def write_state(folder: Path, state: State) -> Path:
    """Writes a checkpoint into the folder of checkpoints; one of the same step is replaced.

    Raises:
        OSError: the disk is full, the folder read-only ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step{state.step:06}"
    unfinished = folder / f".{path.name}.writing"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.tensors.items()}
        try:
            save_file(tensors, unfinished / TENSORS)
        except SafetensorError as error:  # how safetensors says that the disk is full
            raise OSError(str(error)) from error
        facts = {
            "format": FORMAT, "step": state.step, "digest": _digest(unfinished / TENSORS), "facts": state.facts,
        }  # fmt: skip
        (unfinished / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        for name in (TENSORS, FACTS):
            sync(unfinished / name)
        if path.exists():
            shutil.rmtree(path)
        os.replace(unfinished, path)
        sync(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return path


def read_state(path: Path) -> State:
    """A checkpoint.

    Raises:
        Damaged: it is not whole, or not of this format.
    """
    try:
        if (path / FACTS).stat().st_size > LARGEST_FACTS:
            raise Damaged(f"{path / FACTS} is too large")
        found = json.loads((path / FACTS).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise Damaged(f"{path} has another format than {FORMAT}")
        if found["digest"] != _digest(path / TENSORS):
            raise Damaged(f"{path / TENSORS} is not what was written")
        step, facts = found["step"], found["facts"]
        if not (isinstance(step, int) and step >= 0 and isinstance(facts, dict)):
            raise Damaged(f"{path / FACTS} does not say what it must")
        return State(step, load_file(path / TENSORS), facts)
    except Damaged:
        raise
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


def checkpoints(folder: Path) -> list[Path]:
    """Those that are there, oldest step first."""
    found = [path for path in folder.glob("step*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step")))


def newest_state(folder: Path) -> tuple[State | None, list[str]]:
    """(the newest checkpoint that is whole, why newer ones are not)."""
    damage = []
    for path in reversed(checkpoints(folder)):
        try:
            return read_state(path), damage
        except Damaged as error:
            damage.append(str(error))
    return None, damage


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest checkpoints, and what a crash has left unfinished."""
    for path in [*checkpoints(folder)[:-keep], *folder.glob(".step*.writing")]:
        shutil.rmtree(path, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there with its old or its new content, never with part of it.

    Raises:
        OSError: the disk is full, the folder read-only ...
    """
    unfinished = path.with_name(f".{path.name}.writing")
    try:
        unfinished.write_text(text, encoding="utf-8")
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def numbered(prefix: str, tensors: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under names, for `State.tensors`."""
    return {f"{prefix}.{number}": tensor for number, tensor in enumerate(tensors)}


def put_into(places: Iterable[torch.Tensor], prefix: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies what `numbered` named back into its places.

    Raises:
        Damaged: there is no such tensor, or it has another shape: it is of another run.
    """
    with torch.no_grad():
        for number, place in enumerate(places):
            found = tensors.get(f"{prefix}.{number}")
            if found is None or found.shape != place.shape:
                raise Damaged(f"the checkpoint's {prefix}.{number} does not fit this recipe")
            place.copy_(found)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
