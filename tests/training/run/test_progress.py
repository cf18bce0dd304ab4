"""The record of a run's progress: to a checkpoint and back, and back to an earlier step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from lora_kiln.training.model.state import Damaged
from lora_kiln.training.run.checkpoints import State, read_state, write_state
from lora_kiln.training.run.progress import Mark, Progress, SampleFile, SamplePicture


def progress_of(steps: int) -> Progress:
    """A run of some steps: validated, marked, sampled and slowed down at each."""
    progress = Progress(sample_prompts=("a", "b"))
    for step in range(1, steps + 1):
        progress.add_step(1.0 / step, 1e-4 * step)
        if progress.add_validation(step, 2.0 / step):
            progress.best = {"up": torch.full((2,), float(step))}
        progress.rate_changes.append((step, 0.5**step))
        progress.marks.append(Mark(step=step, kind="sample", text=""))
        progress.samples.append(SampleFile(step=step, prompt="a", prompt_index=0, filename="a.png", subfolder=""))
        progress.pictures.append(SamplePicture(step, "a", torch.zeros(1, 1, 3)))
        progress.completed = step
    return progress


def metrics(progress: Progress) -> list[dict[str, Any]]:
    """The lines that a recorder writes of it."""
    made = zip(progress.losses, progress.learning_rates, strict=True)
    steps = [{"step": step, "loss": loss, "learning_rate": rate} for step, (loss, rate) in enumerate(made, start=1)]
    marks = [{"step": mark["step"], "mark": mark["kind"], "text": mark["text"]} for mark in progress.marks]
    return [*steps, *marks, *({"step": sample["step"], "sample": sample} for sample in progress.samples)]


def plain(progress: Progress) -> dict[str, Any]:
    """All but the clock and the pixels, in values that can be compared."""
    left_out = ("_started", "_ended", "pictures")
    values = {name: value for name, value in vars(progress).items() if name not in left_out}
    return {**values, "best": {name: tensor.tolist() for name, tensor in progress.best.items()}}


def test_a_checkpoint_and_the_metrics_hold_all_of_it(tmp_path) -> None:
    before, after = progress_of(3), Progress()
    state = read_state(write_state(tmp_path, State.of(before.state_dict())))
    after.load_state_dict(state.state_dict())
    after.load_metrics(metrics(before))
    assert plain(after) == plain(before)
    assert after.step == state.step == 3 and after.smoothed == before.smoothed
    assert after.elapsed == pytest.approx(before.elapsed, abs=1.0)


def test_the_names_in_a_checkpoint_are_those_of_version_0_1() -> None:
    state = State.of(progress_of(2).state_dict())
    assert state.tensors.keys() == {"losses", "best:up"}
    assert state.facts.keys() == {
        *("elapsed", "rate_changes", "sample_prompts", "validations", "is_over", "looked_at", "steps_back"),
    }


def test_a_run_that_goes_back_to_a_step_is_as_it_was_there() -> None:
    progress, earlier = progress_of(5), progress_of(2)
    progress.cut(earlier.state_dict())
    assert plain(progress) == plain(earlier)
    assert [picture.step for picture in progress.pictures] == [1, 2]


def test_a_run_does_not_go_back_to_a_state_that_is_none() -> None:
    progress = progress_of(3)
    with pytest.raises(Damaged):
        progress.cut({**progress_of(2).state_dict(), "step": 1})
    assert plain(progress) == plain(progress_of(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("elapsed", True), ("elapsed", math.inf), ("elapsed", -1.0), ("rate_changes", [[1, 0.0]]),
        ("rate_changes", [[True, 0.5]]), ("rate_changes", {"1": 0.5}), ("sample_prompts", "a"), ("validations", [[1]]),
        ("validations", [[-1, 0.5]]), ("validations", [["1", 0.5]]), ("is_over", 1), ("looked_at", 2.0),
        ("looked_at", True), ("steps_back", None), ("losses", [0.5, 0.5]), ("losses", torch.zeros(3)),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(Damaged, match=name):
        Progress().load_state_dict({**progress_of(2).state_dict(), name: value})


def test_a_validation_made_again_takes_the_place_of_the_first() -> None:
    progress = Progress()
    assert progress.add_validation(1, 0.5) and not progress.add_validation(2, math.nan)
    assert progress.add_validation(2, 0.4) and progress.add_validation(2, 0.3)
    assert progress.validations == [(1, 0.5), (2, 0.3)] and progress.best_validation == (2, 0.3)


def test_patience_counts_validations_after_the_best() -> None:
    progress = Progress()
    for step, loss in enumerate((0.5, 0.4, 0.4, 0.6), start=1):
        progress.add_validation(step, loss)
    assert progress.is_patience_exhausted(2)
    assert not progress.is_patience_exhausted(3) and not progress.is_patience_exhausted(0)
