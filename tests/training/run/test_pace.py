"""Steps that take far longer than earlier ones are told, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

import pytest
from lora_kiln.training.run.pace import Pace


def told(seconds: Iterable[float]) -> list[str]:
    """The notes about steps that take so long each."""
    times = [0.0, *accumulate(seconds)]
    clock = iter(times)
    pace = Pace(lambda: next(clock))
    return [note for _ in times[1:] if (note := pace.stepped())]


def test_steps_that_become_far_slower_are_told() -> None:
    notes = told([0.5] * 20 + [12.0] * 12)
    assert len(notes) == 1 and "A step takes 12 s, where it took 0.5 s" in notes[0] and "Sysmem Fallback" in notes[0]


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
    pace = Pace(lambda: next(times))
    notes = []
    for _ in range(39):  # a pause of 99 s after each three steps, whose outcomes are read together before it
        notes += [pace.stepped(), pace.stepped(), pace.stepped()]
        pace.rest()
    assert not any(notes) and pace.fastest == pytest.approx(0.3)
