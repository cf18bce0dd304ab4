"""The runs of earlier servers on the page: which are shown, what is read for it, and that changed files are seen."""

import json
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from lora_kiln.training.basics import files
from lora_kiln.training.run import live, stored
from lora_kiln.training.run.live import histories
from lora_kiln.training.run.progress import Progress
from lora_kiln.training.run.records import BLOCK, LARGEST_RECORD, LONGEST_LINE, read_metrics
from lora_kiln.training.run.runs import runs_below

from windows_files import WindowsFiles

NIL = "00000000-0000-0000-0000-000000000000"
RECORD = {
    "format": 1, "workflow_id": "w", "prompt_id": "p", "node_id": "5", "name": "anna", "message": "",
    "state": "finished", "steps": 100, "epochs": 4, "started_at": 1.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_runs", {})
    monkeypatch.setattr(stored, "_histories", {})
    monkeypatch.setattr(live, "_runs", OrderedDict())


def metrics_text(steps: int) -> str:
    return "".join(f'{{"step": {n}, "loss": {1 / n}, "learning_rate": 0.0001}}\n' for n in range(1, steps + 1))


def make_run(root: Path, name: str, metrics: str | Path = "", **entries: Any) -> Path:
    path = root / name
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({**RECORD, **entries}), "utf-8")
    if isinstance(metrics, Path):
        os.link(metrics, path / "metrics.jsonl")
    else:
        (path / "metrics.jsonl").write_text(metrics, "utf-8")
    return path


def shown(root: Path, workflow: str = "w") -> list[str]:
    return [each["run"] for each in histories(root, workflow)]


def test_of_each_node_the_newest_run_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path, "anna/20260101-000000", started_at=1.0)
    make_run(tmp_path, "people/anna/20250101-000000", started_at=3.0)
    make_run(tmp_path, "a/b/c/renamed by hand", started_at=2.0)
    make_run(tmp_path, "anna/20260101-000001", started_at=2.5, node_id="6")
    make_run(tmp_path, "anna/20260101-000002", started_at=9.0, workflow_id="other")
    assert shown(tmp_path) == ["anna/20260101-000001", "people/anna/20250101-000000"]
    assert shown(tmp_path, "none") == []


def test_a_run_that_cannot_be_read_gives_way_to_the_one_before(tmp_path: Path) -> None:
    make_run(tmp_path, "anna/1", started_at=1.0)
    make_run(tmp_path, "anna/2", started_at=2.0, notes="no list")
    (make_run(tmp_path, "anna/3", started_at=3.0) / "run.json").write_text("{")
    with (make_run(tmp_path, "anna/4", started_at=4.0) / "run.json").open("a") as file:
        file.write(" " * LARGEST_RECORD)
    assert shown(tmp_path) == ["anna/1"]


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_runs_that_are_held_are_shown_once_they_are_free_and_waited_for_together(
    name: str, tmp_path: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for number in range(1, 5):
        make_run(tmp_path, f"anna/{number}", metrics_text(3), node_id=str(number))
    holder = windows_files.hold(f"*/{name}", and_read=True)
    assert shown(tmp_path) == [] and 0 < sum(waits) <= files.PATIENCE_SECONDS
    holder.left = 0
    found = sorted((run["run"], run["step"]) for run in histories(tmp_path, "w"))
    assert found == [(f"anna/{n}", 3) for n in range(1, 5)]


def test_a_run_that_another_process_has_open_goes_on(tmp_path: Path) -> None:
    path = make_run(tmp_path, "anna/1", metrics_text(3), state="running")
    (path / "owner.json").write_text('{"pid": 4711, "host": "attic", "since": "2026-01-01 00:00:00"}')
    with FileLock(path / "lock"):
        (run,) = histories(tmp_path, "w")
        assert (run["state"], run["step"], run["controls"]) == ("training", 3, [])
        assert run["message"] == "It goes on in process 4711 on attic, since 2026-01-01 00:00:00."
    (run,) = histories(tmp_path, "w")
    assert run["state"] == "interrupted" and "The server ended while it ran" in run["message"]


def test_what_changes_on_the_disk_is_seen(tmp_path: Path) -> None:
    path = make_run(tmp_path, "anna/1", metrics_text(3))
    assert [each["step"] for each in histories(tmp_path, "w")] == [3]
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 0.1, "learning_rate": 0.0001}\n')
    assert [each["step"] for each in histories(tmp_path, "w")] == [4]
    (path / "run.json").write_text(json.dumps({**RECORD, "state": "failed", "message": "why"}))
    assert [(each["state"], each["message"]) for each in histories(tmp_path, "w")] == [("failed", "why")]
    make_run(tmp_path, "anna/2", started_at=2.0)
    assert shown(tmp_path) == ["anna/2"]
    (tmp_path / "anna/2/run.json").unlink()
    assert shown(tmp_path) == ["anna/1"]


def test_a_workflow_that_was_cleared_has_no_id(tmp_path: Path) -> None:
    make_run(tmp_path, "anna/1", workflow_id=NIL)
    assert shown(tmp_path, NIL) == []
    assert [each["workflow_id"] for each in histories(tmp_path, "")] == [""]


def test_a_thousand_long_runs_are_read_in_no_time(tmp_path: Path) -> None:
    """The bound is generous: reading all that these files hold takes minutes."""
    text = tmp_path / "metrics.jsonl"
    text.write_text(metrics_text(100_000), "utf-8")
    for number in range(1000):
        make_run(tmp_path / "runs", f"anna/20260101-{number:06}", text, started_at=float(number))
    for _ in range(2):
        start = time.monotonic()
        (history,) = histories(tmp_path / "runs", "w")
        assert time.monotonic() - start < 5
    assert (history["run"], history["step"], history["loss"]) == ("anna/20260101-000999", 100_000, 1e-5)
    assert len(history["points"]) <= 4002


def test_the_average_of_many_losses_is_that_of_each_added(tmp_path: Path) -> None:
    progress = Progress()
    for number in range(1, 3001):
        progress.add_step(1 / number, 1e-4)
    make_run(tmp_path, "anna/1", metrics_text(3000))
    (history,) = histories(tmp_path, "w")
    assert history["smoothed"] == pytest.approx(progress.smoothed, rel=1e-12)


def test_all_kinds_of_lines_are_read(tmp_path: Path) -> None:
    sample = {"step": 2, "prompt": "a", "prompt_index": 0, "filename": "a.png", "subfolder": "s"}
    lines = [
        {"step": 1, "loss": 0.5},
        {"step": 1, "validation_loss": 0.4},
        {"step": 2, "loss": 0.3, "learning_rate": 2.0},
        {"step": 2, "mark": "note", "text": "x"},
        {"step": 2, "sample": sample},
        {"step": 1, "validation_loss": 0.2},
    ]
    make_run(tmp_path, "anna/1", "".join(json.dumps(line) + "\n" for line in lines))
    (history,) = histories(tmp_path, "w")
    assert history["points"] == [[1, 0.5, 0.0], [2, 0.3, 2.0]]
    assert (history["validation"], history["best"]) == ([[1, 0.2]], {"step": 1, "validation_loss": 0.2})
    assert history["marks"] == [{"step": 2, "kind": "note", "text": "x"}] and history["samples"] == [sample]


@pytest.mark.parametrize(
    "broken",
    ["", "\n\n", "{", '{"step": 1}, {"step": 2}\n', '{"step": 1, "loss": NaN}\n', "x" * (2 * LONGEST_LINE) + "\n",
     '{"step": 1e400, "loss": 1}\n', '{"step": ' + "9" * 5000 + "}\n", '{"step": 7, "loss": 0.5'],
)  # fmt: skip
def test_broken_lines_are_left_out_and_no_others(tmp_path: Path, broken: str) -> None:
    good = metrics_text(2 * BLOCK // 50)
    count = len(good.splitlines())
    place = good.index("\n", BLOCK // 2) + 1
    end = "" if not broken or broken.endswith("\n") else "\n"
    path = make_run(tmp_path, "anna/1", f"{good[:place]}{broken}{end}{good[place:]}")
    assert [line["step"] for line in read_metrics(path)] == list(range(1, count + 1))


def test_runs_are_found_three_folders_deep_and_not_in_each_other(tmp_path: Path) -> None:
    for name in ("0", "a/b/2", "a/b/c/3", "a/b/c/d/4", "anna/1"):
        make_run(tmp_path, name)
    make_run(tmp_path / "anna/1/checkpoints", "step1")
    assert [path.name for path in runs_below(tmp_path)] == ["1", "2", "3"]
