"""`bench memory`: the search for the smallest card, what is refused without a GPU; then its scale part in a server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import memory
from bench.host_nodes import WATCH, KilnBenchEnd, KilnBenchWatch, look
from bench.memory import Way, chosen_parts, chosen_ways, smallest_card
from bench.models import MODELS
from bench.prompts import config_nodes, filled, write_pictures
from bench.runs import OUT_OF_MEMORY, Run, told_slower

CARDS = (2, 3, 4, 6, 8, 12, 16, 24, 48)


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 48, 49])
@pytest.mark.parametrize("goal", [None, 3, 7, 16])
def test_the_smallest_card_is_found(needed: float, goal: float | None):
    tried: list[float] = []

    def trains(gib: float) -> bool:
        tried.append(gib)
        return gib >= needed

    wanted = next((card for card in CARDS if card >= needed), None)
    assert smallest_card(CARDS, goal, trains) == wanted
    assert len(tried) <= 5 and len(set(tried)) == len(tried)
    assert goal not in CARDS or tried[0] == goal


def test_the_goal_alone_can_be_tried():
    assert smallest_card(CARDS, 16, lambda gib: True, goal_only=True) == 16
    assert smallest_card(CARDS, 16, lambda gib: False, goal_only=True) is None


class FakeBench:
    """Runs that fit from some size on."""

    def __init__(self, needed: float, failure: str = OUT_OF_MEMORY) -> None:
        self.needed, self.failure, self.gib = needed, failure, 0.0

    def shrink(self, gib: float) -> str:
        self.gib = gib
        return ""

    def run(self, *_: Any) -> Run:
        fits = self.gib >= self.needed
        return Run(0.5 if fits else None, "" if fits else self.failure, 1.0, 2.0, {"reserved": 2**30} if fits else {})


def find(bench: FakeBench, way: Way) -> dict[str, Any]:
    return memory.find_card(bench, MODELS["sd15"], way, CARDS, False, lambda text: None)  # pyright: ignore[reportArgumentType]


def test_a_row_says_what_was_tried_and_whether_the_goal_is_reached():
    row = find(bench := FakeBench(4), Way("ours", goal=3))
    assert (row["smallest_gib"], row["reached"], row["reserved"]) == (4, False, 2**30)
    assert row["tried"]["3"] == OUT_OF_MEMORY and row["tried"]["4"] == "trains" and bench.gib == 0
    assert "NOT reached" in memory.card_line(row)
    assert find(FakeBench(2), Way("ours", goal=3))["reached"]


def test_another_failure_ends_the_search():
    row = find(FakeBench(99, "KeyError: no setting"), Way("ours", goal=3))
    assert row["smallest_gib"] is None and len(row["tried"]) == 1 and "no setting" in memory.card_line(row)


def test_without_a_gpu_cards_are_refused_and_scale_runs(capsys: pytest.CaptureFixture[str]):
    assert chosen_parts(None, on_gpu=True) == ["cards", "copies", "scale"]
    assert chosen_parts(None, on_gpu=False) == ["scale"] and "no NVIDIA GPU" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no NVIDIA GPU here.*--parts scale"):
        chosen_parts(["cards"], on_gpu=False)


def test_ways_can_be_chosen_and_changed():
    ways = chosen_ways("flux", ["ours-streaming", "core"], [("ours-streaming", '{"blocks": 3}')])
    assert [(way.name, way.is_ours, way.goal) for way in ways] == [("ours-streaming", True, 10), ("core", False, None)]
    assert ways[0].settings == {"blocks": 3}


INFO = {
    "KilnLoRAConfig": {"input": {"required": {"rank": ["INT", {"default": 8}], "kind": [["a", "b"], {}]}}},
    "KilnAdapterOptions": {"input": {"required": {"config": ["C"], "rules": ["STRING", {"default": ""}]}}},
    "KilnLossOptions": {"input": {"required": {"config": ["C"], "loss": ["COMBO", {"options": ["l2", "l1"]}]}}},
    "KilnOptimizerOptions": {"input": {"required": {"config": ["C"]}, "optional": {"ema": ["FLOAT", {}]}}},
}


def test_settings_find_the_node_that_has_them():
    nodes, out = config_nodes(INFO, {"rank": 4, "ema": 0.9})
    assert list(nodes) == ["KilnLoRAConfig", "KilnOptimizerOptions"] and out == ["KilnOptimizerOptions", 0]
    assert nodes["KilnLoRAConfig"]["inputs"] == {"rank": 4, "kind": "a"}
    assert nodes["KilnOptimizerOptions"]["inputs"] == {"ema": 0.9, "config": ["KilnLoRAConfig", 0]}
    assert filled(INFO, "KilnLossOptions", config=[])["inputs"] == {"config": [], "loss": "l2"}
    with pytest.raises(KeyError, match="no setting streaming"):
        config_nodes(INFO, {"streaming": True})
    with pytest.raises(KeyError, match="no node Nobody"):
        filled(INFO, "Nobody")


def test_each_picture_is_unlike_the_others(tmp_path: Path):
    folder = tmp_path / write_pictures(tmp_path, "few", 5, 64)
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    assert len(set(pictures)) == 5 and len(list(folder.glob("*.txt"))) == 5
    other = tmp_path / write_pictures(tmp_path, "others", 5, 64, seed=1)
    assert not {path.read_bytes() for path in other.glob("*.jpg")} & set(pictures)


def test_the_watch_sees_steps_and_memory():
    model = object()
    assert KilnBenchWatch().execute([model], [1], ["a"]) == (model,)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    held = torch.ones(2**26)  # 256 MiB, so large that it comes from the kernel anew
    for _ in range(3):
        weight.grad = torch.ones(1)
        optimizer.step()
    lora = {"a": torch.zeros(1)}
    found = json.loads(KilnBenchEnd().execute(lora)["ui"]["figures"][0])
    assert len(found["steps"]) == 3 and found["steps"] == sorted(found["steps"])
    assert found["ram_rise_peak"] >= 2**27 and found["resident"] > held.nbytes
    assert found["notes"] == [] and not lora
    optimizer.step()
    assert WATCH.stop() == {}


def test_the_notes_of_a_report_are_taken_along():
    WATCH.start()
    report = "LoRA x: y\nNote: It does not fit.\nLoss: 1"
    found = json.loads(KilnBenchEnd().execute(None, report)["ui"]["figures"][0])
    assert found["notes"] == ["It does not fit."] == told_slower([*found["notes"], "another"])


def test_memory_is_read_from_the_kernel():
    now = look()
    assert 0 < now["anonymous"] < now["resident"]


def test_scale_in_a_real_server(host_dir: Path, kit_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    places = ["--host-dir", str(host_dir), "--workspace", str(tmp_path / "w"), "--kit", str(kit_dir)]
    assert memory.main([*places, "--pictures", "2", "6", "--steps", "2", "--batch", "2", "--json", str(out)]) == 0
    few, more = json.loads(out.read_text())["scale"]
    assert (few["pictures"], few["steps"], more["pictures"], more["steps"]) == (2, 2, 6, 3)
    for row in (few, more):
        assert row["failed"] == "" and row["start_first"] > 0 and row["start_again"] > 0
        assert row["seconds_per_step_again"] > 0 and row["resident_again"] > row["anonymous_again"] > 0
    assert more["cache_bytes"] > few["cache_bytes"] > 0
    assert "6 pictures: first step after" in capsys.readouterr().out


def test_a_run_in_copies_of_the_weights():
    run = Run(0.5, "", 1.0, 2.0, {"gpu_between_steps": 220, "ram_rise": 50, "reserved": 300, "steps": []})
    bench = SimpleNamespace(run=lambda *_: run)
    row = memory.count_copies(bench, MODELS["sd15"], Way("ours"), 200)  # pyright: ignore[reportArgumentType]
    assert (row["gpu_between_steps_copies"], row["ram_rise_copies"]) == (1.1, 0.25)
    assert memory.copies_line(row).endswith("GPU 1.10, RAM 0.25")
