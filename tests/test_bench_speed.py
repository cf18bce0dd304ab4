"""`bench speed`: what is run, in which order, and what becomes of the figures; then a short one in a real server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import figures, speed
from bench.figures import Cell, joined, read_cell, spread
from bench.models import MODELS
from bench.runs import OUT_OF_MEMORY, failure, seconds_per_step

KIT = MODELS["kit"]


def test_a_steps_time_is_between_two_far_apart_after_the_warm_up():
    moments = [(1, 9.0), (2, 10.0), (6, 12.0), (9, 13.5), (10, 17.0)]
    assert seconds_per_step(moments, skip=2, last=9) == pytest.approx(0.5)
    assert seconds_per_step(moments, skip=9, last=9) is None
    assert seconds_per_step([], 1, 10) is None


def test_repeats_are_outermost_and_compiled_ones_run_once():
    todo = list(speed.jobs([KIT], ["ours", "diffusers-compile"], [1, 4], [False], repeats=3))
    assert [(job.peer, job.batch, job.repeats) for job in todo[:4]] == [
        ("ours", 1, 1), ("diffusers-compile", 1, 3), ("ours", 4, 1), ("diffusers-compile", 4, 3),
    ]  # fmt: skip
    assert [job.peer for job in todo[4:]] == ["ours"] * 4


def test_a_cell_that_failed_is_not_tried_again():
    asked: list[tuple[str, int]] = []

    def run(job: speed.Job) -> Cell:
        asked.append((job.peer, job.batch))
        fails = job.peer == "core" and job.batch == 4
        return Cell(job.model.name, job.batch, job.checkpointing, job.peer, "", [] if fails else [0.5],
                    OUT_OF_MEMORY if fails else "")  # fmt: skip

    seen: list[Cell] = []
    bench = SimpleNamespace(run=run)
    todo = speed.jobs([KIT], ["ours", "core"], [1, 4], [False], repeats=2)
    speed.measure(bench, todo, "card", seen.append, lambda text: None)  # pyright: ignore[reportArgumentType]
    assert asked == [("ours", 1), ("core", 1), ("ours", 4), ("core", 4), ("ours", 1), ("core", 1), ("ours", 4)]
    assert [cell.failed for cell in seen if cell.failed] == [OUT_OF_MEMORY] and {c.device for c in seen} == {"card"}


def test_spread():
    assert spread([2.0, 1.0, 4.0]) == 1.5
    assert spread([3.0]) == 0.0


def test_cells_are_joined_by_what_they_measure():
    a = Cell("kit", 1, False, "ours", "card", [1.0], reserved=5)
    again = Cell("kit", 1, False, "ours", "card", [3.0], reserved=7)
    elsewhere = Cell("kit", 1, False, "ours", "other card", [9.0])
    failed = Cell("kit", 4, False, "ours", "card", failed=OUT_OF_MEMORY)
    one, two, three = joined([a, again, elsewhere, failed])
    assert (one.seconds_per_step, one.reserved) == ([1.0, 3.0], 7)
    assert two.seconds_per_step == [9.0] and three.failed == OUT_OF_MEMORY
    assert a.seconds_per_step == [1.0]
    well = Cell("kit", 4, False, "ours", "card", [2.0])
    assert [cell.failed for cell in joined([failed, well])] == [""]
    assert [cell.failed for cell in joined([well, failed])] == [""]


def test_a_cell_says_its_share_of_the_matmul_rate_and_can_be_read_again():
    cell = Cell("kit", 4, True, "ours", "card", [0.5, 0.4, 0.6], reserved=2**30, notes={"x": 1})
    row = cell.summary(flops=100, rate=1000.0)
    assert (row["ms_per_step"], row["pictures_per_second"], row["share_of_matmul"]) == (500.0, 8.0, 0.8)
    assert (row["ms_lowest"], row["ms_highest"], row["spread"]) == (400.0, 600.0, 0.4)
    assert read_cell(json.loads(json.dumps(row))) == cell
    empty = Cell("kit", 4, True, "core", "card", failed=OUT_OF_MEMORY)
    assert read_cell(json.loads(json.dumps(empty.summary(None, None)))) == empty


def test_the_table_sets_each_beside_ours():
    cells = [
        Cell("kit", 1, False, "ours", "card", [0.5], reserved=3 * 2**30),
        Cell("kit", 1, False, "core", "card", [1.0]),
        Cell("kit", 1, False, "diffusers", "card", failed=OUT_OF_MEMORY),
    ]
    lines = figures.table([cell.summary(100, 1000.0) for cell in cells]).splitlines()
    assert lines[1] == "kit, batch 1 (card)"
    assert "500" in lines[3] and "3.0" in lines[3] and "20.0%" in lines[3]
    assert lines[4].endswith("2.00 x") and lines[5].split(maxsplit=1) == ["diffusers", OUT_OF_MEMORY]


def test_what_is_out_of_memory():
    assert failure("torch.OutOfMemoryError", "CUDA ...") == OUT_OF_MEMORY
    assert failure("RuntimeError", "CUDA error: out of memory") == OUT_OF_MEMORY
    assert failure("ValueError", "a\nb") == "a b"


def test_a_selection_of_models_peers_and_cells():
    options, rest = speed.parser().parse_known_args(
        ["--host-dir", "h", "--workspace", "w", "--models", "sd15", "flux", "--peers", "ours", "core-bypass"]
        + ["--batch", "4", "--checkpointing", "on", "--repeats", "2", "--disable-dynamic-vram"]
    )
    assert (options.models, options.peers, options.batch) == (["sd15", "flux"], ["ours", "core-bypass"], [4])
    assert (options.checkpointing, options.repeats, rest) == (["on"], 2, ["--disable-dynamic-vram"])
    assert speed.estimate([speed.Job(MODELS["flux"], 1, True, "ours", 1)], [MODELS["flux"]]) > 0
    with pytest.raises(SystemExit):
        speed.parser().parse_args(["--host-dir", "h", "--workspace", "w", "--peers", "nobody"])


def test_the_kit_in_a_real_server(
    host_dir: Path,
    kit_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    """Ours and the core's in one server, figures joined with those of an earlier run."""
    monkeypatch.setattr(speed, "PICTURES", 2)
    monkeypatch.setattr(speed, "PREPARED", 2)
    out, earlier = tmp_path / "out.json", tmp_path / "earlier.json"
    common = ["--host-dir", str(host_dir), "--workspace", str(tmp_path / "w"), "--kit", str(kit_dir), "--steps", "3"]
    known = Cell("kit", 1, False, "ours", "another card", [0.25])
    earlier.write_text(
        json.dumps({"device": "another card", "matmul_flops": 1e12, "models": {}, "cells": [known.summary(None, None)]})
    )
    arguments = ["--models", "kit", "--peers", "ours", "core-bypass", "--batch", "1"]
    assert speed.main([*common, *arguments, "--add", str(earlier), "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    cells = {(cell["peer"], cell["device"]): cell for cell in found["cells"]}
    assert len(cells) == 3 and cells["ours", "another card"]["ms_per_step"] == 250.0
    for peer in ("ours", "core-bypass"):
        cell = cells[peer, found["device"]]
        assert cell["failed"] == "" and cell["ms_per_step"] > 0 and cell["share_of_matmul"] > 0
    assert len(found["preparation"]) == 2
    for row in found["preparation"]:
        assert row["failed"] == "" and row["first"] > 0 and row["again"] > 0
    assert found["models"]["kit"]["forward_flops"] > 0 and found["versions"]["ComfyUI"]
    assert "to ours" in capsys.readouterr().out
