"""Learning-rate schedules, against formulas written another way."""

import math

import pytest
from lora_kiln.training.config import SCHEDULERS
from lora_kiln.training.schedules import learning_rate_factor

STEPS, WARMUP = 60, 12


def factors(scheduler: str, warmup: int = 0, steps: int = STEPS) -> list[float]:
    return [learning_rate_factor(scheduler, step, steps, warmup) for step in range(steps)]


@pytest.mark.parametrize(
    ("scheduler", "formula"),
    [
        ("constant", lambda t: 1.0),
        ("linear", lambda t: 1 - t),
        ("cosine", lambda t: math.cos(math.pi * t / 2) ** 2),
        ("cosine_with_restarts", lambda t: math.cos(math.pi * math.modf(3 * t)[0] / 2) ** 2),
        ("polynomial", lambda t: 1 - 2 * t + t * t),
    ],
)
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_after_the_warm_up_it_is_its_formula(scheduler: str, formula, warmup: int) -> None:
    expected = [formula((step - warmup) / (STEPS - warmup)) for step in range(warmup, STEPS)]
    assert factors(scheduler, warmup)[warmup:] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_it_stays_within_0_and_1(scheduler: str) -> None:
    assert all(0 <= factor <= 1 for warmup in (0, 1, WARMUP) for factor in factors(scheduler, warmup))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_step_is_wasted(scheduler: str) -> None:
    assert all(factor > 0 for warmup in (0, 1, WARMUP) for factor in factors(scheduler, warmup))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_warm_up_rises_evenly_to_the_peak(scheduler: str) -> None:
    rise = factors(scheduler, WARMUP)[: WARMUP + 1]
    steps = [after - before for before, after in zip(rise, rise[1:], strict=False)]
    assert rise[-1] == 1.0
    assert steps == pytest.approx([rise[0]] * WARMUP)


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "polynomial"])
def test_it_falls_all_the_way(scheduler: str) -> None:
    run = factors(scheduler)
    assert run == sorted(run, reverse=True) and run[-1] < 0.05


def test_restarts_come_back_to_the_peak_three_times() -> None:
    assert factors("cosine_with_restarts").count(1.0) == 3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_run_of_one_step_learns(scheduler: str) -> None:
    assert factors(scheduler, steps=1) == [1.0]


def test_an_unknown_scheduler_is_refused() -> None:
    with pytest.raises(ValueError, match="'sine'"):
        learning_rate_factor("sine", 0, STEPS)
