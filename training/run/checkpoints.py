"""Checkpoints: the state from which a run resumes as if it had never stopped.

A checkpoint is a folder `step000120` with `state.safetensors` (tensors) and `state.json` (plain values, and a digest of
both files). `state.json` makes it whole: it is written last and deleted first. No folder is renamed, which Windows
refuses while any program has a file in it open. The digest detects files that a crash has truncated. A second
checkpoint of the same step is `step000120-2`; the first is deleted once the second is whole.
Links that lead out of a run's folder are not followed: neither to read, nor to write, nor to delete.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..basics.disk_errors import told_by_library
from ..basics.files import atomic_write, delete, delete_folder, patiently, read, sync
from ..basics.paths import LinkLeadsOut, leads_out, raise_if_leading_out
from ..basics.tensor_files import load_tensors
from ..model.state import Damaged

TENSORS, FACTS = "state.safetensors", "state.json"
FORGOTTEN = "forgotten"
"""a file that stands in a checkpoint whose `state.json` could not be deleted: it is none any more"""
FORMAT = 2
NAME = re.compile(r"step(\d{6,12})(?:-(\d{1,9}))?")
LARGEST_FACTS = 64 * 2**20
INCOMPLETE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, LinkLeadsOut)
"""errors of a checkpoint that lacks a file; any other says nothing about it: a program or the network is in the way"""


@dataclass(frozen=True)
class State:
    """The content of a checkpoint."""

    step: int
    """optimizer steps done"""
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """plain JSON"""

    @classmethod
    def of(cls, state_dict: Mapping[str, Any]) -> "State":
        """Splits a flat dictionary of "step", tensors and plain JSON."""
        tensors = {name: each for name, each in state_dict.items() if isinstance(each, torch.Tensor)}
        facts = {name: each for name, each in state_dict.items() if name not in tensors and name != "step"}
        return cls(state_dict["step"], tensors, facts)

    def state_dict(self) -> dict[str, Any]:
        """Joins them again."""
        return {**self.facts, **self.tensors, "step": self.step}


def delete_from(folder: Path, step: int) -> list[Path]:
    """Deletes the checkpoints of a step and of later steps. Returns those that stay, since `forget` failed.

    Raises:
        OSError: the folder cannot be listed now.
    """
    return [path for path in checkpoints(folder) if _order(path)[0] >= step and not forget(path)]


def forget(path: Path) -> bool:
    """Deletes a checkpoint. Where other programs hold a part of it, what is left is no checkpoint any more.

    Returns:
        False: it stays, since neither its facts could be deleted nor a mark be put there.
    """
    if path.is_symlink():
        return True
    try:
        delete(path / FACTS)
    except OSError:
        try:
            (path / FORGOTTEN).touch()
        except OSError:
            return False
    else:
        delete_folder(path)
    return True


def write_state(folder: Path, state: State) -> Path:
    """Writes a checkpoint into the folder of checkpoints, then deletes earlier ones of the same step.

    Raises:
        OSError: the disk is full, the folder read-only ...
    """
    raise_if_leading_out(folder, folder.parent)
    folder.mkdir(parents=True, exist_ok=True)
    left = [path for path in _folders(folder) if _order(path)[0] == state.step]
    path = folder / (f"step{state.step:06}" + (f"-{_order(left[-1])[1] + 1}" if left else ""))
    patiently(path.mkdir)
    try:
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.tensors.items()}
        try:
            save_file(tensors, path / TENSORS)
        except SafetensorError as error:
            raise told_by_library(error) from error
        sync(path / TENSORS)
        digest = _digest(path / TENSORS, state.step, state.facts)
        facts = {"format": FORMAT, "step": state.step, "digest": digest, "facts": state.facts}
        with atomic_write(path / FACTS) as unfinished:
            unfinished.write_text(json.dumps(facts), encoding="utf-8")
        sync(folder)
    except BaseException:
        forget(path)
        raise
    for each in left:
        forget(each)
    _sweep(folder)
    return path


def read_state(path: Path) -> State:
    """Reads a checkpoint.

    Raises:
        Damaged: it is incomplete, was changed, or has another format.
        OSError: it cannot be read now: another program holds it, its disk is away ...
    """
    try:
        for each in (path / TENSORS, path / FACTS):
            raise_if_leading_out(each, path.parent.parent)
        if (path / FACTS).stat().st_size > LARGEST_FACTS:
            raise Damaged(f"{path / FACTS} is too large")
        found = json.loads(read(path / FACTS))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise Damaged(f"{path} has another format than {FORMAT}")
        step, facts = found["step"], found["facts"]
        if not (isinstance(step, int) and step >= 0 and isinstance(facts, dict)):
            raise Damaged(f"{path / FACTS} lacks step or facts")
        if found["digest"] != _digest(path / TENSORS, step, facts):
            raise Damaged(f"{path} is not what was written")
        return State(step, load_tensors(path / TENSORS), facts)
    except Damaged:
        raise
    except (*INCOMPLETE, ValueError, KeyError, RecursionError, SafetensorError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from error


def checkpoints(folder: Path) -> list[Path]:
    """The folder's checkpoints by step, the lowest first; without those that were not written or deleted to the end.

    Raises:
        OSError: the folder cannot be listed now.
    """
    return [path for path in _folders(folder) if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    """True, too, where the system does not tell now: it is never deleted for that."""
    try:
        os.lstat(path / FACTS)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return not os.path.lexists(path / FORGOTTEN)


def _folders(folder: Path) -> list[Path]:
    """The folders of checkpoints, also of those that are not whole."""
    if leads_out(folder, [folder.parent]):
        return []
    try:
        found = [folder / name for name in os.listdir(folder) if NAME.fullmatch(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((path for path in found if not leads_out(path, [folder])), key=_order)


def newest_state(folder: Path, before: float = math.inf) -> tuple[State | None, list[str]]:
    """(the last complete checkpoint of a step below `before`, what is wrong with each later one).

    Raises:
        OSError: one that may be whole cannot be read now; an earlier one must not take its place.
    """
    if leads_out(folder, [folder.parent]):
        return None, [f"{folder} is a link out of the run's folder, which is not followed: this run starts anew."]
    damage = []
    for path in reversed(checkpoints(folder)):
        if _order(path)[0] >= before:
            continue
        try:
            return read_state(path), damage
        except Damaged as error:
            damage.append(str(error))
    return None, damage


def prune(newest: Path, keep: int) -> None:
    """Deletes all checkpoints but the newest.

    Args:
        newest: the one just written. Checkpoints of later steps are deleted: they are damaged, or the run went back to
            a step before them.
        keep: how many stay.
    """
    known = checkpoints(newest.parent)
    end = known.index(newest) + 1
    for path in [*known[: max(0, end - keep)], *known[end:]]:
        forget(path)


def _sweep(folder: Path) -> None:
    """Deletes what a crash has left half written or half deleted; what is still held stays for the next time."""
    halves = [path for path in _folders(folder) if not _is_whole(path)]
    for path in [*halves, *folder.glob(".step*.writing")]:  # those of earlier versions
        if not path.is_symlink():
            with suppress(OSError):
                (path / FACTS).unlink(missing_ok=True)
                shutil.rmtree(path)


def _order(path: Path) -> tuple[int, int]:
    """(step, number among the checkpoints of that step), from a checkpoint's name."""
    found = NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2] or 1)


def _digest(path: Path, step: int, facts: Mapping[str, Any]) -> str:
    """A hash of step, facts and the file of tensors."""
    digest = hashlib.blake2b(json.dumps([step, facts]).encode(), digest_size=16)
    with patiently(lambda: path.open("rb")) as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
