"""What tells a person how a run goes: an error there ends no run, and every run gives its LoRA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import pytest
from lora_kiln.nodes import train_lora as node
from lora_kiln.training import host
from lora_kiln.training.learning import step
from lora_kiln.training.learning.picture_losses import PictureLosses
from lora_kiln.training.run import live, run_recorder, trainer
from lora_kiln.training.run.recorder import Record
from lora_kiln.training.run.records import read_metrics
from lora_kiln.training.run.run_recorder import RunRecorder
from server import PromptServer

import models
from training_runs import assert_same, at_step, changed, dataset, graph_models, run, watched

pytestmark = pytest.mark.usefixtures("lora_folder")
STEPS = 2
CONFIG = changed(steps=STEPS, batch_size=1)


@dataclass
class Ground:
    """What a test of faults needs: the host's server, and pytest's way to break a thing for one test."""

    server: PromptServer
    patch: pytest.MonkeyPatch


@pytest.fixture
def ground(host_server: PromptServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    yield Ground(host_server, monkeypatch)
    comfy.utils.PROGRESS_BAR_HOOK = None


def raising(*_: Any, **__: Any) -> Any:
    raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it.")


def server_ends_at_first(ground: Ground) -> Record:
    ground.server.loop.close()
    return run_recorder.recorded


def server_ends_in_the_middle(ground: Ground) -> Record:
    return at_step(1, ground.server.loop.close)


def server_ends_at_the_end(ground: Ground) -> Record:
    at_end = lambda recorder, phase, message: recorder.progress.is_over and ground.server.loop.close()  # noqa: E731
    return watched(shown=at_end)


def no_json(ground: Ground) -> Record:
    def spoil(recorder: RunRecorder) -> None:
        recorder.live.name = object()  # type: ignore[assignment]

    return watched(spoil)


def picture_losses_fail(ground: Ground) -> Record:
    ground.patch.setattr(PictureLosses, "relative", raising)
    return run_recorder.recorded


def progress_bar_fails(ground: Ground) -> Record:
    comfy.utils.set_progress_bar_global_hook(raising)
    return run_recorder.recorded


def report_fails(ground: Ground) -> Record:
    ground.patch.setattr(trainer, "run_report", raising)
    return run_recorder.recorded


FAULTS: list[tuple[Callable[[Ground], Record], str]] = [
    (server_ends_at_first, "What the page shows"), (server_ends_in_the_middle, "What the page shows"),
    (server_ends_at_the_end, "What the page shows"), (no_json, "What the page shows"),
    (picture_losses_fail, "What the page shows"), (progress_bar_fails, "progress bar"), (report_fails, "The report"),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(("fault", "said"), FAULTS, ids=lambda each: getattr(each, "__name__", ""))
def test_a_run_that_cannot_tell_how_it_goes_gives_its_lora_and_says_so_once(fault, said, ground, whole, caplog):
    if not whole:
        whole["run"] = run(CONFIG, "whole")
    caplog.set_level("INFO")
    trained = run(CONFIG, record=fault(ground))
    assert_same(trained, whole["run"])
    assert len([line for line in caplog.messages if said in line and "is incomplete" in line]) == 1
    if fault not in (picture_losses_fail, server_ends_at_the_end):  # those are met when the report is made
        assert said in trained.report and trained.report.count("is incomplete") == 1


def test_a_rate_that_is_no_number_is_left_out_and_hides_nothing_else(monkeypatch, host_server):
    monkeypatch.setattr(step, "rate_factor", lambda _: math.inf)
    trained = run(CONFIG)
    history = live.histories()[-1]
    assert [point[2] for point in history["points"]] == [None] * STEPS and history["learning_rate"] is None
    lines = read_metrics(host.runs_root() / history["run"])
    assert [line["loss"] for line in lines if "loss" in line] == trained.losses
    assert "incomplete" not in trained.report


def test_a_stop_by_the_user_is_none_of_these_errors(ground):
    def stop(*_: Any, **__: Any) -> None:
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    comfy.utils.set_progress_bar_global_hook(stop)
    with pytest.raises(host.Interrupted):
        run(CONFIG)


def test_a_lora_that_cannot_be_written_still_ends_the_run(monkeypatch):
    monkeypatch.setattr(run_recorder.LoRAWriter, "write", raising)
    with pytest.raises(TypeError, match="MPS"):
        run(CONFIG.changed(save_every=1))


def test_train_lora_gives_its_lora_without_a_samples_sheet(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(node, "strength_grid", raising)
    small = graph_models(models.sd15())
    config = CONFIG.changed(sample_every=STEPS, sample_prompts=("a",), sample_steps=1)
    output = node.TrainLoRA.execute(small.model, small.clip, small.vae, dataset(), config, "test")
    assert output.args is not None and len(output.args[0]) > 0
    assert "The samples sheet is incomplete" in caplog.text
