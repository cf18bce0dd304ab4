"""Steps that take far longer than earlier ones are told, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import pytest
from lora_kiln.training.run.pace import Pace

from training_runs import changed, run


def told(seconds: Iterable[float], tried: float = float("inf")) -> list[str]:
    """The notes about steps that take so long each, after a trial of so many seconds."""
    times = [0.0, *accumulate(seconds)]
    clock = iter(times)
    pace = Pace(True, lambda: next(clock))
    pace.expected = tried
    return [note for _ in times[1:] if (note := pace.stepped())]


def test_steps_that_become_far_slower_are_told() -> None:
    notes = told([0.5] * 20 + [12.0] * 12)
    assert len(notes) == 1 and "A step takes 12 s, where 0.5 s were" in notes[0] and "Sysmem Fallback" in notes[0]


def test_steps_that_are_far_slower_than_what_was_tried_are_told_from_the_first_on() -> None:
    assert len(told([9.0] * 12, tried=0.5)) == 1 and not told([4.0] * 12, tried=0.5)
    assert not told([0.5] * 12, tried=0.01)  # mostly Python


@pytest.mark.parametrize(
    "seconds",
    [
        [0.5] * 30 + [300.0] + [0.5] * 30,  # the computer slept
        [30.0] * 3 + [0.5] * 30,  # kernels are compiled first
        [0.5, 2.0, 0.5, 4.0] * 10,  # pictures of other sizes
        [0.001, 0.999] * 20 + [3.0] * 12,  # outcomes in bursts; half of the pictures at a time
    ],
)
def test_what_is_usual_is_not_told(seconds: list[float]) -> None:
    assert not told(seconds)


def test_a_pause_does_not_count() -> None:
    times = iter(sorted([100.0 * number + part for number in range(40) for part in (0.0, 1.0, 1.0, 1.0)]))
    pace = Pace(True, lambda: next(times))
    notes = []
    for _ in range(39):  # a pause of 99 s after each three steps, whose outcomes are read together before it
        notes += [pace.stepped(), pace.stepped(), pace.stepped()]
        pace.rest()
    assert not any(notes) and pace.expected == pytest.approx(0.3)


@pytest.mark.usefixtures("lora_folder")
def test_a_slow_run_has_the_note_in_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "stepped", lambda pace: "slow")
    report = run(changed(steps=2, batch_size=1, checkpoint_minutes=60.0)).report
    assert report.count("Note: slow") == 1
