"""Checkpoints whose files other programs hold, as on Windows; and those that a kill has left half written."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch
from lora_kiln.training.basics import files, tensor_files
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.run import checkpoints, resume
from lora_kiln.training.run.checkpoints import FACTS, FORGOTTEN, TENSORS, State, newest_state, prune, write_state
from lora_kiln.training.run.origin import Origin
from safetensors import SafetensorError

from disk import Writes
from training_runs import changed
from windows_files import WindowsFiles, mapped_below


def state(step: int) -> State:
    return State(step, {"a": torch.full((8,), float(step))}, {"b": step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest_step(folder: Path) -> int | None:
    found, damage = newest_state(folder)
    assert not damage
    return found.step if found else None


@pytest.mark.parametrize("held", ["*/state.safetensors", "*/state.json", "*/step*", "*.writing"])
def test_a_file_that_is_held_for_a_moment_is_waited_for(held: str, tmp_path: Path, windows_files: WindowsFiles):
    for step in (1, 2, 3):
        windows_files.hold(held, times=2)
        prune(write_state(tmp_path, state(step)), keep=1)
        assert names(tmp_path) == [f"step{step:06}"] and newest_step(tmp_path) == step
    assert names(tmp_path / "step000003") == [FACTS, TENSORS]


def test_a_folder_in_which_a_file_is_open_takes_checkpoints(tmp_path: Path, windows_files: WindowsFiles):
    """As an indexer does, a reader opens each file of tensors as soon as it is there."""
    kept = []
    sync = files.sync

    def opened(path: Path) -> None:
        if path.name == TENSORS:
            kept.append(path.open("rb"))
        sync(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "sync", opened)
        write_state(tmp_path, state(1))
    assert newest_step(tmp_path) == 1 and len(kept) == 1
    kept[0].close()


@pytest.mark.parametrize("held", [TENSORS, FACTS])
def test_a_checkpoint_that_cannot_be_deleted_is_none_all_the_same(
    held: str, tmp_path: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    for step in (1, 2, 3):
        write_state(tmp_path, state(step))
    holder = windows_files.hold(f"*/step000003/{held}")
    checkpoints.delete_from(tmp_path, 3)
    assert (tmp_path / "step000003" / held).exists()
    assert newest_step(tmp_path) == 2
    prune(write_state(tmp_path, state(3)), keep=1)
    assert names(tmp_path) == ["step000003", "step000003-2"] and newest_step(tmp_path) == 3
    holder.left = 0
    prune(write_state(tmp_path, state(4)), keep=1)
    assert names(tmp_path) == ["step000004"]


@pytest.mark.parametrize("name", [TENSORS, FACTS])
def test_a_checkpoint_that_is_held_is_not_passed_over(
    name: str, tmp_path: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
):
    """A run that began from an earlier one would delete it."""
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    for step in (1, 2):
        write_state(tmp_path, state(step))
    holder = windows_files.hold(f"*/step000002/{name}", and_read=True)
    with pytest.raises(PermissionError):
        newest_state(tmp_path)
    holder.left = 0
    assert newest_step(tmp_path) == 2


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_checkpoint_that_cannot_be_read_now_stops_a_run_that_would_go_on(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    origin = Origin(changed(), {}, {})
    folder = resume.open_run(tmp_path, "anna", origin, resume.CONTINUE).folder
    with closing(folder):
        folder.record({**origin.plain(), "name": "anna", "state": "interrupted"})
        folder.checkpoint(state(1), 1)

    def refused(path: Path) -> None:
        raise SafetensorError(f"I/O error: no luck (os error {code})")

    with monkeypatch.context() as broken:
        broken.setattr(tensor_files, "load_file", refused)
        with pytest.raises(InputError, match="cannot be read .*no luck.* Then queue again"):
            resume.open_run(tmp_path, "anna", origin, resume.CONTINUE)
    opened = resume.open_run(tmp_path, "anna", origin, resume.CONTINUE)
    assert opened.state is not None and opened.folder.path == folder.path
    opened.folder.close()


@pytest.mark.parametrize("what", ["the folder", "a checkpoint"])
def test_checkpoints_that_the_system_does_not_show_now_are_not_deleted(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for step in (1, 2):
        write_state(tmp_path, state(step))

    def away(call):
        def refused(path, *rest, **named):
            if str(path).startswith(str(tmp_path / "step000002") if what == "a checkpoint" else str(tmp_path)):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return call(path, *rest, **named)

        return refused

    with monkeypatch.context() as broken:
        for name in ("lstat", "stat", "listdir", "scandir"):
            broken.setattr(os, name, away(getattr(os, name)))
        with pytest.raises(OSError, match="error"):
            newest_state(tmp_path)
        if what == "a checkpoint":
            write_state(tmp_path, state(3))
    assert (tmp_path / "step000002" / FACTS).exists() and (tmp_path / "step000002" / TENSORS).exists()


def test_what_a_kill_has_left_stays_until_the_next_checkpoint_is_whole(tmp_path: Path):
    write_state(tmp_path, state(1))
    (tmp_path / "step000001" / FORGOTTEN).touch()
    with Writes(tmp_path, 1), pytest.raises(OSError, match="space"):
        write_state(tmp_path, state(2))
    assert names(tmp_path) == ["step000001"]
    write_state(tmp_path, state(2))
    assert names(tmp_path) == ["step000002"]


def test_a_checkpoint_that_can_be_neither_deleted_nor_marked_is_told(
    tmp_path: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    for step in (1, 2, 3):
        write_state(tmp_path, state(step))
    windows_files.hold(f"*/step000002/{FACTS}")
    with Writes(tmp_path, 0):
        assert checkpoints.delete_from(tmp_path, 2) == [tmp_path / "step000002"]
    assert names(tmp_path) == ["step000001", "step000002"] and newest_step(tmp_path) == 2
    assert checkpoints.delete_from(tmp_path, 2) == [] and newest_step(tmp_path) == 1


def test_nothing_of_a_checkpoint_stays_mapped(tmp_path: Path, windows_files: WindowsFiles):
    found = checkpoints.read_state(write_state(tmp_path, state(1)))
    assert mapped_below(tmp_path) == set()
    checkpoints.forget(tmp_path / "step000001")
    assert names(tmp_path) == [] and torch.equal(found.tensors["a"], torch.ones(8))


@pytest.mark.parametrize(
    ("step", "left"),
    [("step000002", TENSORS), ("step000002", ""), (".step000002.writing", TENSORS), ("step000002", FORGOTTEN)],
)
def test_what_a_kill_has_left_is_no_checkpoint_and_goes_with_the_next(step: str, left: str, tmp_path: Path):
    write_state(tmp_path, state(1))
    if left == FORGOTTEN:
        shutil.copytree(tmp_path / "step000001", tmp_path / step)
    (tmp_path / step).mkdir(exist_ok=True)
    if left:
        (tmp_path / step / left).write_bytes(b"half")
    assert newest_step(tmp_path) == 1
    prune(write_state(tmp_path, state(2)), keep=2)
    assert [name[:10] for name in names(tmp_path)] == ["step000001", "step000002"] and newest_step(tmp_path) == 2
