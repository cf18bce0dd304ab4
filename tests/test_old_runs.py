"""Runs that an older version began and that were stopped: this version goes on with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from lora_kiln.training.run.records import read_metrics, read_record

import old_runs
from old_runs import RATE_FACTOR, RATE_STEP, STEPS, STOPPED_AT

TOLERANCE = 1e-3
"""relative; processors and versions of torch round differently"""


@pytest.mark.parametrize("name", old_runs.RECIPES)
def test_a_run_begun_by_version_0_1_goes_on_as_if_it_had_never_stopped(
    name: str, folders: Path, lora_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    root = folders / "output" / "lora_kiln"
    shutil.copytree(old_runs.FOLDER / name, root / name)
    (run,) = (root / name).iterdir()
    before = [line["loss"] for line in read_metrics(run) if "loss" in line]
    assert len(before) == STOPPED_AT
    data = old_runs.dataset(folders / "pictures")

    resumed = old_runs.run(monkeypatch, name, name, data)
    assert f"Goes on from step {STOPPED_AT} of the run {name}/{run.name}." in resumed.report
    assert [path.name for path in (root / name).iterdir()] == [run.name]
    assert read_record(run)["state"] == "finished"
    assert resumed.losses[:STOPPED_AT] == before
    assert len(resumed.losses) == STEPS

    whole = old_runs.run(monkeypatch, "whole", name, data)
    assert resumed.losses == pytest.approx(whole.losses, rel=TOLERANCE)
    assert [(each.step, each.prompt) for each in resumed.samples] == [(e.step, e.prompt) for e in whole.samples]
    assert resumed.lora.keys() == whole.lora.keys()
    for key, tensor in whole.lora.items():
        error = torch.linalg.vector_norm(resumed.lora[key] - tensor) / torch.linalg.vector_norm(tensor)
        assert error < TOLERANCE, f"{key} differs by {error:.1e}"

    (of_whole,) = (root / "whole").iterdir()
    ours, theirs = read_metrics(run), read_metrics(of_whole)
    for kind in ("learning_rate", "validation_loss"):
        now, then = ([(each["step"], each[kind]) for each in lines if kind in each] for lines in (ours, theirs))
        assert now == [(step, pytest.approx(value, rel=TOLERANCE)) for step, value in then]
    marks = [(line["step"], line["text"]) for line in ours if line.get("mark") == "learning_rate"]
    assert marks == [(RATE_STEP + 1, f"x {RATE_FACTOR:g}")]
