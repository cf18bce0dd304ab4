"""A run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json

import pytest
from lora_kiln.training import events
from lora_kiln.training.problems import InputError
from lora_kiln.training.run_folder import ANEW, CONTINUE_CHANGED, REFUSE, read_metrics

from training_runs import CONFIG, assert_same, changed, run, stopped_at

STEPS = CONFIG.steps


@pytest.fixture(autouse=True)
def lora_folder(folders, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folders / "loras")], {".safetensors"}))


@pytest.mark.parametrize(
    "values",
    [
        dict(),
        dict(gradient_accumulation=2, dropout=0.2),
        dict(ema_decay=0.9, scheduler="cosine_with_restarts", warmup=2),
        dict(text_encoder_learning_rate=1e-3),
        dict(optimizer="lion"),
        dict(optimizer="prodigy", learning_rate=1.0),
        dict(optimizer="schedule_free", scheduler="constant"),
        dict(optimizer="adafactor"),
        dict(sample_every=2, sample_prompts=("a",), sample_steps=2, checkpoint_minutes=0.0),
        dict(validation_share=0.3, validation_every=1, keep_best=True),
    ],
)
def test_a_run_that_goes_on_gives_the_lora_of_one_that_never_stopped(values, monkeypatch):
    config = changed(**values)
    whole = run(config, "whole")
    stopped_at(monkeypatch, 2, config)
    resumed = run(config)
    assert_same(resumed, whole)
    assert [(each.step, each.prompt) for each in resumed.samples] == [(s.step, s.prompt) for s in whole.samples]
    assert "Goes on from step 2" in resumed.report
    history = events.histories()[-1]
    assert [point[0] for point in history["points"]] == list(range(1, STEPS + 1))
    assert any(mark["kind"] == "resumed" for mark in history["marks"])


def test_a_finished_run_is_not_trained_again():
    first, again = run(CONFIG), run(CONFIG)
    assert_same(first, again)
    assert "its LoRA is taken" in again.report


def test_a_changed_recipe_starts_anew_and_says_why(monkeypatch):
    stopped_at(monkeypatch, 2, CONFIG)
    other = changed(learning_rate=5e-3)
    anew = run(other)
    assert_same(anew, run(other, "other"))
    assert "learning_rate was 0.01, is 0.005" in anew.report


@pytest.mark.parametrize("values", [dict(learning_rate=5e-3), dict(rank=8)])
def test_a_changed_recipe_may_go_on_where_it_fits(values, monkeypatch):
    stopped_at(monkeypatch, 2, CONFIG)
    if "rank" in values:
        with pytest.raises(InputError, match="cannot be continued"):
            run(changed(**values), previous=CONTINUE_CHANGED)
        return
    trained = run(changed(**values), previous=CONTINUE_CHANGED)
    assert "learning_rate was 0.01, is 0.005" in trained.report
    assert len(trained.losses) == STEPS
    assert trained.losses != run(changed(**values), "fresh").losses


def test_a_changed_run_may_be_refused_with_what_changed(monkeypatch, folders):
    stopped_at(monkeypatch, 2, CONFIG)
    with pytest.raises(InputError, match="learning_rate was 0.01, is 0.005"):
        run(changed(learning_rate=5e-3), previous=REFUSE)


def test_starting_anew_overwrites_nothing(monkeypatch, folders):
    stopped_at(monkeypatch, 2, CONFIG)
    before = {path: path.read_bytes() for path in (folders / "output").rglob("*") if path.is_file()}
    run(CONFIG, previous=ANEW)
    assert before and all(path.read_bytes() == content for path, content in before.items() if path.name != "lock")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(monkeypatch, folders):
    config = changed(checkpoint_minutes=0.0)
    whole = run(config, "whole")
    stopped_at(monkeypatch, 3, config)
    newest = sorted((folders / "output").glob("lora_kiln/test/*/checkpoints/step*"))[-1]
    (newest / "state.safetensors").write_bytes((newest / "state.safetensors").read_bytes()[:-100])
    assert_same(run(config), whole)


def test_the_loss_that_is_no_number_steps_back_where_asked():
    steady = changed(on_divergence="step back", checkpoint_minutes=0.0, max_grad_norm=0.0, learning_rate=1e30, steps=3)
    from lora_kiln.training.loop import Diverged

    with pytest.raises(Diverged):
        run(steady)
    assert len([note for note in events.histories()[-1]["notes"] if "Went back" in note]) == 3


def test_the_record_holds_what_the_lora_follows_from(folders):
    run(CONFIG)
    record = json.loads(next((folders / "output").glob("lora_kiln/test/*/run.json")).read_text())
    assert record["state"] == "finished" and record["recipe"]["rank"] == CONFIG.rank
    assert record["dataset"]["pictures"] == 4 and record["models"]["model"]


def test_what_stopped_the_run_is_said_even_if_nothing_can_be_kept(monkeypatch):
    """A checkpoint that cannot be made, and losses of pictures that cannot be read, hide no error."""
    from lora_kiln.training.learner import Learner
    from lora_kiln.training.picture_losses import PictureLosses

    def broken(*_):
        raise RuntimeError("the device is gone")

    def failing(self, *args):
        monkeypatch.setattr(Learner, "state", broken)
        monkeypatch.setattr(PictureLosses, "relative", broken)
        raise OSError("what stopped it")

    with monkeypatch.context() as patched:
        done = events.RunEvents.step
        patched.setattr(events.RunEvents, "step", lambda self, *args: (done(self, *args), failing(self)))
        with pytest.raises(OSError, match="what stopped it"):
            run(CONFIG)
    last = events.histories()[-1]
    assert last["state"] == "failed" and "what stopped it" in last["message"] and "is gone" in last["message"]
    assert "is kept in" in last["message"]  # the LoRA itself could be
    assert events.live_run(last["run"]).pictures() == []


def test_a_run_that_took_over_another_steps_back_to_its_own_checkpoint(monkeypatch, folders):
    from lora_kiln.training.loop import Diverged

    stopped_at(monkeypatch, 2, CONFIG)
    done, broke = events.RunEvents.step, []

    def diverging(self, *args):
        done(self, *args)
        if len(self.losses) == 3 and not broke:
            broke.append(3)
            raise Diverged("The loss is nan", 4, 0.01)

    monkeypatch.setattr(events.RunEvents, "step", diverging)
    trained = run(
        changed(on_divergence="step back", checkpoint_minutes=0.0, weight_decay=0.0), previous=CONTINUE_CHANGED
    )
    last = events.histories()[-1]
    assert "Went back to step 2" in trained.report and len(trained.losses) == STEPS
    told = [line["step"] for line in read_metrics(folders / "output" / "lora_kiln" / last["run"]) if "loss" in line]
    assert told == list(range(1, STEPS + 1))
