"""The folders of all runs: where a new one lies, and which is the newest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lora_kiln.training.basics import files
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.run.records import RECORD
from lora_kiln.training.run.runs import earlier_runs, new_run

from windows_files import WindowsFiles

NAMES = [
    *("backup of anna", "zzz", "~", "\uffff", "-", "20261128-221559 best", "20261128-221559-", "20261128-221559-1"),
    *("99999999-999999", "99999999-999999-999", f"99999999-999999-{'9' * 99}", "\u0662" * 8 + "-" + "\u0662" * 6),
]


def make_run(path: Path, **facts) -> Path:
    path.mkdir(parents=True)
    (path / RECORD).write_text(json.dumps({"format": 1, **facts}), "utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_beside_any_folder_a_new_run_begins(name: str, tmp_path: Path) -> None:
    make_run(tmp_path / "anna" / name)
    made = [new_run(tmp_path, "anna") for _ in range(2)]
    for each in made:
        each.record({"state": "running"})
        each.close()
    found = [path for path, _ in earlier_runs(tmp_path / "anna")]
    assert found[:2] == [made[1].path, made[0].path] and len(found) == 3


def test_a_renamed_run_counts_by_the_time_when_it_began(tmp_path: Path) -> None:
    later = make_run(tmp_path / "20260101-000000")
    earlier = make_run(tmp_path / "the best", started_at=1.6e9)
    unknown = make_run(tmp_path / "zzz")
    latest = make_run(tmp_path / "a", started_at=1.8e9)
    assert [path for path, _ in earlier_runs(tmp_path)] == [latest, later, earlier, unknown]


def test_a_run_whose_record_is_held_is_not_passed_over(
    tmp_path: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    older, newer = (make_run(tmp_path / f"20261129-00000{number}") for number in (1, 2))
    holder = windows_files.hold(f"{newer}/run.json", and_read=True)
    with pytest.raises(InputError, match="cannot be read .*another program.* Then queue again"):
        next(earlier_runs(tmp_path))
    holder.left = 0
    assert [path for path, _ in earlier_runs(tmp_path)] == [newer, older]


@pytest.mark.parametrize("what", ["a file", "a link to nothing"])
def test_a_name_that_is_no_folder_is_said(what: str, tmp_path: Path) -> None:
    if what == "a file":
        (tmp_path / "anna").write_text("")
    else:
        (tmp_path / "anna").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be written"):
        new_run(tmp_path, "anna")
