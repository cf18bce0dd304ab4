"""A run's folder: what its record keeps, who has it open; links are not followed."""

from __future__ import annotations

import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from lora_kiln.training.basics import files, locks
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.run import folder as run_folders
from lora_kiln.training.run.checkpoints import State, delete_from, newest_state, prune, write_state
from lora_kiln.training.run.folder import OWNER, RunFolder, open_in
from lora_kiln.training.run.records import METRICS, RECORD, read_metrics, read_record

from disk import ShortPaths, Writes
from windows_files import WindowsFiles


@pytest.fixture
def folder(tmp_path: Path):
    path = tmp_path / "anna" / "20261129-000000"
    path.mkdir(parents=True)
    with closing(RunFolder(path, tmp_path)) as made:
        yield made


def test_facts_are_added_and_replaced(folder: RunFolder) -> None:
    folder.record({"name": "anna", "state": "running"})
    folder.record({"state": "finished"})
    assert read_record(folder.path) == {"format": 1, "name": "anna", "state": "finished"}


@pytest.mark.parametrize("entries", [{"of_a_later_version": [1, 2]}, {"steps": "many"}, {"steps": 12.0}])
def test_entries_that_this_version_does_not_take_stay(folder: RunFolder, entries: dict) -> None:
    written = {"format": 1, "recipe": {"rank": 4}, **entries}
    (folder.path / RECORD).write_text(json.dumps(written), "utf-8")
    folder.record({"state": "interrupted"})
    assert json.loads((folder.path / RECORD).read_text("utf-8")) == {**written, "state": "interrupted"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', "[" * 100_000])
def test_a_record_that_cannot_be_read_begins_anew(folder: RunFolder, text: str) -> None:
    (folder.path / RECORD).write_text(text, "utf-8")
    folder.record({"state": "running"})
    assert json.loads((folder.path / RECORD).read_text("utf-8")) == {"format": 1, "state": "running"}


@pytest.mark.parametrize("fact", ["\ud800", float("nan"), {1}])
def test_facts_that_cannot_be_written_are_refused_once(fact: object, tmp_path: Path) -> None:
    path = tmp_path / "anna" / "1"
    path.mkdir(parents=True)
    opened = RunFolder(path, tmp_path)
    with pytest.raises((ValueError, TypeError)):
        opened.record({"name": fact})
    opened.record({"state": "finished"})
    opened.close()
    assert json.loads((opened.path / RECORD).read_text("utf-8")) == {"format": 1, "state": "finished"}
    assert open_in(opened.path) is None


@pytest.mark.parametrize("text", [r'"\ud800"', "1e999"])
def test_a_record_with_an_entry_that_cannot_be_written_again_begins_anew(folder: RunFolder, text: str) -> None:
    (folder.path / RECORD).write_text(f'{{{{"format": 1, "a": {text}}}}}', "utf-8")
    folder.record({"state": "running"})
    assert read_record(folder.path) == {"format": 1, "state": "running"}


def test_a_record_that_cannot_be_written_is_noted_once(folder: RunFolder) -> None:
    with Writes(folder.path, 0):
        folder.record({"state": "running"})
        folder.record({"state": "finished"})
    assert len(folder.notes) == 1 and "No space left" in folder.notes[0]


def test_lines_that_are_to_be_cut_go_once_their_file_can_be_read(
    folder: RunFolder, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(run_folders, "FLUSH_SECONDS", 0.0)
    for step in (1, 2, 3, 4):
        folder.log({"step": step, "loss": 1.0})
    folder.flush()
    holder = windows_files.hold("*/metrics.jsonl", and_read=True)
    assert folder.cut_metrics(3) == []
    folder.log({"step": 4, "loss": 2.0})
    assert [line["step"] for line in folder.cut_metrics(2)] == []
    folder.log({"step": 3, "loss": 2.0})
    holder.left = 0
    folder.log({"step": 4, "loss": 2.0})
    folder.flush()
    losses = [(line["step"], line.get("loss")) for line in read_metrics(folder.path)]
    assert losses == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


# ---------------------------------------------------------------- names: a person renames folders as they like


def test_files_that_a_kill_has_left_half_written_go_when_the_run_is_opened(tmp_path: Path) -> None:
    (tmp_path / "anna").mkdir()
    for name in (".a.writing", "run.json"):
        (tmp_path / "anna" / name).write_text("{")
        os.utime(tmp_path / "anna" / name, (1e9, 1e9))
    with closing(RunFolder(tmp_path / "anna", tmp_path)) as opened:
        assert not list(opened.path.glob(".*.writing")) and (opened.path / "run.json").exists()


def test_the_length_of_a_runs_path_is_tried_where_no_checkpoint_was_written_yet(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 90) / ("b" * 90) / "20261129-000000"
    path.mkdir(parents=True)
    with ShortPaths(tmp_path, len(str(path)) + 10):
        for _ in range(2):
            with pytest.raises(InputError, match="writes longer paths"):
                RunFolder(path, tmp_path)
            assert open_in(path) is None
    write_state(path / "checkpoints", STATE)
    with ShortPaths(tmp_path, len(str(path)) + 10), closing(RunFolder(path, tmp_path)) as opened:
        assert newest_state(opened.checkpoints)[1] == []


def test_who_has_a_run_open_is_told(folder: RunFolder) -> None:
    assert open_in(folder.path) == "another process"
    folder.write_owner({"pid": 4711, "host": "attic", "since": "2026-01-01 00:00:00"})
    assert open_in(folder.path) == "process 4711 on attic, since 2026-01-01 00:00:00"
    folder.close()
    assert open_in(folder.path) is None
    with FileLock(folder.path / "lock", timeout=0):
        pass


def test_a_folder_that_a_virus_scanner_holds_is_not_said_to_be_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    path = tmp_path / "anna" / "20261129-000000"
    path.mkdir(parents=True)
    with monkeypatch.context() as scanner:
        scanner.setattr(os, "open", refused)
        with pytest.raises(InputError, match="another program holds the file, such as a virus scanner"):
            RunFolder(path, tmp_path)
        assert open_in(path) is None
    RunFolder(path, tmp_path).close()


# ---------------------------------------------------------------- links: nothing is followed out of the folder

STATE = State(1, {"a": torch.ones(2)}, {"b": 1})


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder outside of the run's, as large as life."""
    made = tmp_path / "elsewhere"
    for step in (1, 2, 3):
        write_state(made / "checkpoints", State(step, STATE.tensors, STATE.facts))
    (made / "samples").mkdir()
    (made / RECORD).write_text(json.dumps({"format": 1, "name": "secret"}), "utf-8")
    (made / METRICS).write_text(json.dumps({"step": 1, "loss": 0.5}) + "\n", "utf-8")
    (made / OWNER).write_text(json.dumps({"pid": "secret", "host": "", "since": ""}), "utf-8")
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def test_links_out_of_a_runs_folder_are_not_read(folder: RunFolder, elsewhere: Path) -> None:
    folder.write_picture("a.png", torch.ones(2, 2, 3))
    (folder.samples / "a.png").rename(elsewhere / "samples" / "a.png")
    folder.samples.rmdir()
    for path in elsewhere.iterdir():
        (folder.path / path.name).symlink_to(path)
    with pytest.raises(ValueError, match="a link leads"):
        read_record(folder.path)
    assert read_metrics(folder.path) == [] and folder.read_picture("a.png") is None
    state, damage = newest_state(folder.checkpoints)
    assert state is None and "is a link out" in damage[0]
    assert "secret" not in str(open_in(folder.path))


def test_links_out_of_a_runs_folder_are_not_written_through(folder: RunFolder, elsewhere: Path) -> None:
    before = content(elsewhere)
    for path in elsewhere.iterdir():
        (folder.path / path.name).symlink_to(path)
    folder.log({"step": 2, "loss": 0.1})
    assert folder.checkpoint(State(4, STATE.tensors, STATE.facts), 1) is None
    assert folder.write_picture("b.png", torch.ones(2, 2, 3)) is None
    assert len(folder.notes) == 3 and all("not followed" in note for note in folder.notes)
    folder.record({"name": "ours"})
    folder.write_owner({"pid": 1, "host": "", "since": ""})
    folder.cut_metrics(1)
    assert content(elsewhere) == before
    assert read_record(folder.path) == {"format": 1, "name": "ours"} and read_metrics(folder.path) == []


def test_links_out_of_a_runs_folder_are_not_deleted_through(folder: RunFolder, elsewhere: Path) -> None:
    before = content(elsewhere)
    folder.checkpoints.symlink_to(elsewhere / "checkpoints")
    delete_from(folder.checkpoints, 1)
    folder.checkpoints.unlink()
    one = write_state(folder.checkpoints, STATE)
    for link in ("step000000", ".step000009.writing", "step000002"):
        (folder.checkpoints / link).symlink_to(elsewhere / "checkpoints" / "step000001")
    inside = folder.checkpoints / "step000003"
    inside.mkdir()
    (inside / "state.json").symlink_to(elsewhere / "checkpoints" / "step000001" / "state.json")
    (inside / "more").symlink_to(elsewhere)
    state, damage = newest_state(folder.checkpoints)
    assert state is not None and state.step == 1 and "not followed" in damage[0]
    prune(one, 1)
    assert not inside.exists() and content(elsewhere) == before


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("content")
    path = tmp_path / "anna" / "20261129-000000"
    path.mkdir(parents=True)
    (path / "lock").symlink_to(target)
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(path, tmp_path)
    assert open_in(path) is None and target.read_text() == "content"
