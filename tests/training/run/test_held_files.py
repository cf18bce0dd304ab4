"""Runs under Windows' rule for files in use, and with other programs that hold the files of a run.

What is open or mapped can be neither replaced nor deleted there; an antivirus, an indexer, OneDrive or the page may
have any file open at any moment.
"""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from lora_kiln.training.basics import files
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.lora.files import read_lora_file
from lora_kiln.training.lora.save import save_lora
from lora_kiln.training.run import folder as run_folders
from lora_kiln.training.run.records import read_metrics, read_record

import models
from training_runs import assert_same, assert_untouched, changed, run, stopped_at
from windows_files import WindowsFiles, mapped_below

pytestmark = pytest.mark.usefixtures("lora_folder")
STEPS = 3
CONFIG = changed(
    steps=STEPS, batch_size=1, checkpoint_minutes=0.0, keep_checkpoints=1, save_every=2, sample_every=2,
    sample_prompts=("a",), sample_steps=1,
)  # fmt: skip
"""writes all that a run can write"""
OURS = ("*.json", "*.jsonl", "*.safetensors", "*.png", "*.writing")
"""all files but the lock"""


def run_folder(folders: Path) -> Path:
    return max((folders / "output" / "lora_kiln" / "test").iterdir())


def losses(folders: Path) -> list[int]:
    """The steps whose loss metrics.jsonl tells."""
    return [line["step"] for line in read_metrics(run_folder(folders)) if "loss" in line]


@contextmanager
def read_in_a_loop(folder: Path) -> Iterator[list[int]]:
    """Somebody reads the files of all runs again and again. Gives how often, at the end."""
    ended, counts = threading.Event(), [0]

    def read() -> None:
        while not ended.wait(0.001):
            for name in ("run.json", "metrics.jsonl"):
                for path in folder.rglob(name):
                    with suppress(FileNotFoundError), path.open("rb") as file:
                        file.read()
                        counts[0] += 1

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield counts
    finally:
        ended.set()
        reader.join()


def test_a_run_that_is_read_all_the_time_is_recorded_to_its_end(
    folders: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
):
    """It is stopped and goes on, and leaves nothing open, mapped or half deleted."""
    monkeypatch.setattr(run_folders, "FLUSH_SECONDS", 0.0)
    with read_in_a_loop(folders / "output") as counts:
        stopped_at(2, CONFIG)
        assert read_record(run_folder(folders)).get("state") == "interrupted"
        resumed = run(CONFIG)
    assert counts[0] > 20 and "Goes on from step 2" in resumed.report
    assert "could not be written" not in resumed.report
    assert read_record(run_folder(folders)).get("state") == "finished"
    assert losses(folders) == list(range(1, STEPS + 1))
    assert [path.name for path in (run_folder(folders) / "checkpoints").iterdir()] == [f"step{STEPS:06}-2"]
    assert not list(folders.rglob("*.writing"))
    gc.collect()
    assert mapped_below(folders) == set()


def test_a_lora_that_was_read_is_not_kept_mapped(folders: Path, windows_files: WindowsFiles):
    path = save_lora(folders / "a.safetensors", {"lora_unet_x.lora_down.weight": torch.ones(2, 3)}, {})
    lora = read_lora_file(path)
    assert mapped_below(folders) == set()
    path.unlink()
    assert torch.equal(lora["lora_unet_x.lora_down.weight"], torch.ones(2, 3))


def test_files_that_are_held_for_a_moment_are_waited_for(folders: Path, windows_files: WindowsFiles):
    for pattern in OURS:
        for _ in range(2):  # one program after the other
            windows_files.hold(pattern, times=1, and_read=True)
    trained = run(CONFIG)
    assert not [holder for holder in windows_files.holders if not holder.met]
    assert "could not be written" not in trained.report
    assert read_record(run_folder(folders)).get("state") == "finished"
    assert losses(folders) == list(range(1, STEPS + 1))


def test_files_of_a_run_that_are_held_all_the_time_are_told(
    folders: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
):
    """The run gives its LoRA all the same, and begins again once they are free."""
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    small = models.sd15()
    before = models.state(small)
    names = ("run.json", "metrics.jsonl", "state.safetensors", "*.png")
    holders = [windows_files.hold(f"*/{name}", and_read=True) for name in names]
    trained = run(CONFIG, small=small)
    for what in ("run.json", "metrics.jsonl", "a checkpoint", "a sample picture"):
        assert f"{what} could not be written" in trained.report
    assert "another program" in trained.report and "free some space" not in trained.report
    assert_untouched(small, before)
    for holder in holders:
        holder.left = 0
    assert_same(run(CONFIG, small=small), trained)


def test_a_lora_that_cannot_be_saved_is_told_and_loses_nothing(
    folders: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    holders = [windows_files.hold(pattern) for pattern in OURS]
    with pytest.raises(InputError, match="test-step000002.safetensors could not be written .* another program"):
        run(CONFIG)
    for holder in holders:
        holder.left = 0
    run(CONFIG)
    assert losses(folders) == list(range(1, STEPS + 1))


def test_a_record_that_nobody_may_read_is_not_begun_anew(
    folders: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    (folders / "a" / "b").mkdir(parents=True)
    opened = run_folders.RunFolder(folders / "a" / "b", folders)
    opened.record({"name": "anna", "state": "running"})
    holder = windows_files.hold("*/run.json", and_read=True)
    opened.record({"state": "finished"})
    assert "run.json could not be written" in opened.notes[0]
    holder.left = 0
    opened.close()
    assert json.loads((opened.path / "run.json").read_text()) == {"format": 1, "name": "anna", "state": "finished"}
