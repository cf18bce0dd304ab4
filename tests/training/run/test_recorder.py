"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_kiln.nodes.save_lora import SaveLoRA
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.learning.loop import Diverged
from lora_kiln.training.run import live as events
from lora_kiln.training.run import pauses
from lora_kiln.training.run.recorder import unrecorded
from lora_kiln.training.run.records import read_metrics
from lora_kiln.training.run.resume import ANEW, CONTINUE, CONTINUE_CHANGED, REFUSE
from lora_kiln.training.run.run_recorder import RunRecorder
from safetensors.torch import load_file

from training_runs import CONFIG, assert_same, at_step, changed, run, stopped_at, watched

pytestmark = pytest.mark.usefixtures("lora_folder")
STEPS = CONFIG.optimization.steps


class Killed(BaseException):
    """The end of the process: nothing is written any more."""


@pytest.mark.parametrize(
    "values",
    [
        dict(),
        dict(gradient_accumulation=2, dropout=0.2),
        dict(ema_decay=0.9, scheduler="cosine_with_restarts", warmup=2),
        dict(text_encoder_learning_rate=1e-3),
        dict(precision="fp16"),
        dict(optimizer="lion"),
        dict(optimizer="prodigy", learning_rate=1.0),
        dict(optimizer="schedule_free", scheduler="constant"),
        dict(optimizer="adafactor"),
        dict(sample_every=2, sample_prompts=("a",), sample_steps=2, checkpoint_minutes=0.0),
        dict(validation_share=0.3, validation_every=1, keep_best=True),
    ],
)
def test_a_run_that_goes_on_gives_the_lora_of_one_that_never_stopped(values):
    config = changed(**values)
    whole = run(config, "whole")
    stopped_at(2, config)
    resumed = run(config)
    assert_same(resumed, whole)
    assert [(each.step, each.prompt) for each in resumed.samples] == [(s.step, s.prompt) for s in whole.samples]
    assert "Goes on from step 2" in resumed.report
    history = events.histories()[-1]
    assert [point[0] for point in history["points"]] == list(range(1, STEPS + 1))
    assert any(mark["kind"] == "resumed" for mark in history["marks"])


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp16"), ("fp16", "fp32")])
def test_a_stopped_run_goes_on_in_another_precision(before, after):
    stopped_at(2, changed(precision=before))
    resumed = run(changed(precision=after), previous=CONTINUE_CHANGED)
    assert f"learned in 2 steps. Changed since: precision was {before}, is {after}." in resumed.report
    assert len(resumed.losses) == STEPS


def test_what_a_stop_kept_goes_when_the_run_goes_on_and_nothing_else_does(lora_folder):
    def partial() -> list[str]:
        return sorted(path.name for path in lora_folder.glob("*-partial*"))

    stopped_at(1, CONFIG, "other")
    stopped_at(1, CONFIG)
    of_another = lora_folder / "test-step000002-partial.safetensors"
    of_another.write_bytes((lora_folder / "other-step000001-partial.safetensors").read_bytes())
    copied = lora_folder / "test-step000001-partial - my favourite.safetensors"
    copied.write_bytes((lora_folder / "test-step000001-partial.safetensors").read_bytes())
    stays = [copied.name, of_another.name, "other-step000001-partial.safetensors"]
    stopped_at(3, CONFIG)
    latest = "test-step000003-partial.safetensors"
    assert partial() == sorted([*stays, latest])
    lora = run(CONFIG).lora
    assert partial() == sorted([*stays, latest])  # until the LoRA itself lies in a file
    SaveLoRA.execute(lora, "saved")
    assert partial() == sorted(stays)


def test_what_a_stop_kept_stays_when_the_run_diverges(lora_folder):
    stopped_at(2, CONFIG)
    diverging = at_step(3, lambda: raise_(Diverged("The loss is nan", 3, 0.1, True)))
    with pytest.raises(Diverged):
        run(CONFIG, record=diverging)
    assert (lora_folder / "test-step000002-partial.safetensors").is_file()


def raise_(error: Exception) -> None:
    raise error


def finished_at(step: int, previous: str = CONTINUE):
    """A run that a person finished while the step after it was under way."""
    finishing = at_step(step, lambda: next(reversed(events._runs.values())).ask("finish"))
    return run(CONFIG, previous=previous, record=finishing)


def test_a_run_finished_by_hand_says_how_to_train_the_rest_and_does_so():
    whole = run(CONFIG, "whole")
    cut = finished_at(1)
    again = run(CONFIG)
    assert_same(cut, again)
    for said in (cut.report, again.report, "\n".join(events.histories()[-1]["notes"])):
        assert f"To train the rest set previous_run of Train LoRA to {CONTINUE_CHANGED!r}" in said
    rest = run(CONFIG, previous=CONTINUE_CHANGED)
    assert_same(rest, whole)
    assert "Goes on from step 2" in rest.report
    assert "To train the rest" not in run(CONFIG).report
    assert "its LoRA is taken" in run(CONFIG, previous=CONTINUE_CHANGED).report


def test_the_rest_that_was_stopped_goes_on(monkeypatch):
    whole = run(CONFIG, "whole")
    finished_at(1)
    with monkeypatch.context() as patched:
        patched.setattr(host, "encode_text", lambda *_, **__: raise_(host.Interrupted()))
        patched.setenv("LORA_KILN_CACHE_GB", "0")
        with pytest.raises(host.Interrupted):
            run(CONFIG, previous=CONTINUE_CHANGED)
    rest = run(CONFIG)
    assert "Goes on from step 2" in rest.report
    assert_same(rest, whole)


def test_a_run_that_ended_early_by_itself_has_no_rest():
    patient = changed(steps=6, validation_share=0.3, validation_every=1, validation_patience=1, learning_rate=1e-9)
    ended = run(patient)
    assert len(ended.losses) < 6 and "To train the rest" not in ended.report
    again = run(patient, previous=CONTINUE_CHANGED)
    assert "its LoRA is taken" in again.report and len(again.losses) == len(ended.losses)


def test_what_to_do_about_the_rest_fits_what_is_chosen():
    report = finished_at(1, CONTINUE_CHANGED).report
    assert "Queued again, the same workflow trains the rest" in report


def test_a_changed_recipe_goes_on_where_a_run_was_finished_by_hand():
    finished_at(1)
    report = run(changed(learning_rate=5e-3), previous=CONTINUE_CHANGED).report
    assert "had learned in 2 steps" in report and "learning_rate was 0.01, is 0.005" in report


@pytest.mark.parametrize("previous", [CONTINUE, CONTINUE_CHANGED])
def test_a_changed_recipe_after_a_finished_run_says_what_changed(previous):
    run(CONFIG)
    report = run(changed(learning_rate=5e-3), previous=previous).report
    assert "has finished with 4 steps: learning_rate was 0.01, is 0.005" in report


def test_a_changed_recipe_after_a_finished_run_stops_where_that_is_chosen():
    run(CONFIG)
    with pytest.raises(InputError) as refused:
        run(changed(learning_rate=5e-3), previous=REFUSE)
    told = str(refused.value)
    assert "ended at step 4, and this is not the same run: learning_rate was 0.01, is 0.005" in told
    assert told.endswith(f"or choose {ANEW!r}.")  # the other choice would begin anew too


def test_a_finished_run_is_not_trained_again():
    first, again = run(CONFIG), run(CONFIG)
    assert_same(first, again)
    assert "its LoRA is taken" in again.report


def test_a_changed_recipe_starts_anew_and_says_why():
    stopped_at(2, CONFIG)
    other = changed(learning_rate=5e-3)
    anew = run(other)
    assert_same(anew, run(other, "other"))
    assert "learning_rate was 0.01, is 0.005" in anew.report


@pytest.mark.parametrize("values", [dict(learning_rate=5e-3), dict(rank=8)])
def test_a_changed_recipe_may_go_on_where_it_fits(values):
    stopped_at(2, CONFIG)
    if "rank" in values:
        with pytest.raises(InputError, match="cannot be continued"):
            run(changed(**values), previous=CONTINUE_CHANGED)
        return
    trained = run(changed(**values), previous=CONTINUE_CHANGED)
    assert "learning_rate was 0.01, is 0.005" in trained.report
    assert len(trained.losses) == STEPS
    assert trained.losses != run(changed(**values), "fresh").losses


def test_a_changed_run_may_be_refused_with_what_changed(folders):
    stopped_at(2, CONFIG)
    with pytest.raises(InputError, match="learning_rate was 0.01, is 0.005"):
        run(changed(learning_rate=5e-3), previous=REFUSE)


def test_starting_anew_overwrites_nothing(folders):
    stopped_at(2, CONFIG)
    before = {path: path.read_bytes() for path in (folders / "output").rglob("*") if path.is_file()}
    run(CONFIG, previous=ANEW)
    assert before and all(path.read_bytes() == content for path, content in before.items() if path.name != "lock")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(folders):
    config = changed(checkpoint_minutes=0.0)
    whole = run(config, "whole")
    stopped_at(3, config)
    newest = sorted((folders / "output").glob("lora_kiln/test/*/checkpoints/step*"))[-1]
    (newest / "state.safetensors").write_bytes((newest / "state.safetensors").read_bytes()[:-100])
    assert_same(run(config), whole)


def test_the_loss_that_is_no_number_steps_back_where_asked():
    steady = changed(
        on_divergence="step back", checkpoint_minutes=0.0, max_grad_norm=0.0, layer_rules="* lr=1e30", steps=3
    )
    with pytest.raises(Diverged):
        run(steady)
    assert times_back() == 3


def test_the_record_holds_what_the_lora_follows_from(folders):
    run(CONFIG)
    record = json.loads(next((folders / "output").glob("lora_kiln/test/*/run.json")).read_text())
    assert record["state"] == "finished" and record["recipe"]["rank"] == CONFIG.adapter.rank
    assert record["dataset"]["pictures"] == 4 and record["models"]["model"]


def test_what_stopped_the_run_is_said_even_if_nothing_can_be_kept(monkeypatch):
    """A checkpoint that cannot be made, and losses of pictures that cannot be read, hide no error."""
    from lora_kiln.training.learning.picture_losses import PictureLosses
    from lora_kiln.training.model.learner import Learner

    def broken(*_):
        raise RuntimeError("the device is gone")

    def failing(recorder: RunRecorder):
        monkeypatch.setattr(Learner, "state", broken)
        monkeypatch.setattr(PictureLosses, "relative", broken)
        raise OSError("what stopped it")

    with pytest.raises(OSError, match="what stopped it"):
        run(CONFIG, record=watched(failing))
    last = events.histories()[-1]
    assert last["state"] == "failed" and "what stopped it" in last["message"] and "is gone" in last["message"]
    assert "is kept in" in last["message"]  # the LoRA itself could be
    assert events.live_run(last["run"]).pictures() == []


def test_a_run_that_took_over_another_steps_back_to_its_own_checkpoint(folders):
    stopped_at(2, CONFIG)
    broke = []

    def diverging(recorder: RunRecorder):
        if recorder.progress.step == 3 and not broke:
            broke.append(3)
            raise Diverged("The loss is nan", 4, 0.01)

    def times_seen() -> dict[str, int]:
        live = events.live_run(events.histories()[-1]["run"])
        assert live is not None
        return {row["name"]: row["count"] for row in live.pictures()}

    config = changed(on_divergence="step back", checkpoint_minutes=0.0, weight_decay=0.0)
    run(config, "whole")
    seen = times_seen()
    trained = run(config, previous=CONTINUE_CHANGED, record=watched(diverging))
    last = events.histories()[-1]
    assert times_seen() == seen
    assert "Went back to step 2" in trained.report and len(trained.losses) == STEPS
    told = [line["step"] for line in read_metrics(folders / "output" / "lora_kiln" / last["run"]) if "loss" in line]
    assert told == list(range(1, STEPS + 1))


# ---------------------------------------------------------------- the best, and the way back

BEST = changed(
    validation_share=0.3, validation_every=1, keep_best=True, save_every=1, save_precision="fp32",
    checkpoint_minutes=0.0,
)  # fmt: skip


def measured(monkeypatch: pytest.MonkeyPatch, loss_at: Callable[[int], float]) -> None:
    """Lets validation find a loss that depends on the step."""
    monkeypatch.setattr(pauses, "mean_loss", lambda *_: loss_at(events.histories()[-1]["step"]))


def assert_is(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    found = load_file(file)
    assert found.keys() == tensors.keys()
    assert [name for name in found if not torch.equal(found[name], tensors[name])] == []


def times_back() -> int:
    return sum("Went back" in note for note in events.histories()[-1]["notes"])


def test_files_on_the_way_hold_their_own_step_and_the_last_the_best(monkeypatch, lora_folder):
    measured(monkeypatch, lambda step: abs(step - 2))
    last = run(changed(**{**BEST.flat(), "keep_best": False}), "last")
    best = run(BEST)
    for step in (1, 2, 3):
        assert_is(
            lora_folder / f"test-step{step:06}.safetensors", load_file(lora_folder / f"last-step{step:06}.safetensors")
        )
    assert_is(lora_folder / "test-step000002.safetensors", best.lora)
    assert (best.lora.metadata["ss_steps"], last.lora.metadata["ss_steps"]) == ("2", str(STEPS))


def test_what_is_kept_of_a_stopped_run_is_the_best_under_its_own_step(monkeypatch, lora_folder):
    measured(monkeypatch, lambda step: abs(step - 2))
    stopped_at(3, BEST)
    assert_is(
        lora_folder / "test-step000002-partial.safetensors", load_file(lora_folder / "test-step000002.safetensors")
    )
    assert "What was learned in 2 steps is kept in" in events.histories()[-1]["message"]


def test_nothing_of_the_way_that_was_given_up_stays(monkeypatch, lora_folder):
    """Step 3 is the best and is drawn by hand, step 4 diverges; killed after the step back or not, it is the same."""
    config = changed(**{**BEST.flat(), "on_divergence": "step back", "sample_every": STEPS, "sample_prompts": ("a",)})
    given_up = []

    def diverging(recorder: RunRecorder):
        step = recorder.progress.step
        if step == 3 and not given_up:
            recorder.controls.ask("sample")
        if step == 4 and not given_up:
            given_up.append(step)
            raise Diverged("The loss is nan", step, 0.01)

    def killing(recorder: RunRecorder):
        diverging(recorder)
        if given_up and recorder.progress.step == 3:
            raise Killed

    measured(monkeypatch, lambda step: 1.0 if step == 3 and not given_up else 2.0 + abs(step - 2))
    whole = run(config, "whole", record=watched(diverging))
    history = events.histories()[-1]
    assert "Went back to step 2" in whole.report
    assert_is(lora_folder / "whole-step000002.safetensors", whole.lora)
    assert [sample.step for sample in whole.samples] == [sample["step"] for sample in history["samples"]] == [0, STEPS]
    assert [mark["step"] for mark in history["marks"] if mark["kind"] == "sample"] == [0, STEPS]
    given_up.clear()
    with pytest.raises(Killed):
        run(config, record=watched(killing))
    resumed = run(config)
    assert "Goes on from step 2" in resumed.report
    assert_same(resumed, whole)


def test_steps_back_are_counted_over_a_stop():
    wild = changed(
        on_divergence="step back", checkpoint_minutes=0.0, max_grad_norm=0.0, layer_rules="* lr=1e30", steps=3
    )

    def killing(recorder: RunRecorder, phase: str, message: str):
        if phase == "training" and times_back() == 2:
            raise Killed

    with pytest.raises(Killed):
        run(wild, record=watched(shown=killing))
    with pytest.raises(Diverged):
        run(wild)
    assert times_back() == 1


def test_a_run_without_a_record_gives_the_same_lora_and_leaves_nothing_on_disk(lora_folder, folders):
    config = changed(
        sample_every=2, sample_prompts=("a",), sample_steps=1, validation_share=0.3, validation_every=2, keep_best=True,
        save_every=1, checkpoint_minutes=0.0,
    )  # fmt: skip
    shown = [each["run"] for each in events.histories()]
    unseen = run(config, record=unrecorded)
    assert [each["run"] for each in events.histories()] == shown
    assert not (folders / "output" / "lora_kiln" / "test").exists()
    assert not lora_folder.exists()
    recorded = run(config)
    assert_same(unseen, recorded)
    assert [(each.step, each.prompt) for each in unseen.samples] == [(e.step, e.prompt) for e in recorded.samples]
