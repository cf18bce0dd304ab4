"""The record of a run's folder: facts are added, and nothing else in it is lost."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from lora_kiln.training.run.folder import RECORD, RunFolder, read_record


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
