"""Learning-rate schedules, against formulas written another way."""

import math

import pytest
import torch
from diffusers.optimization import (
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)
from lora_kiln.training.config import SCHEDULERS, OptimizationConfig
from lora_kiln.training.learning.schedules import learning_rate_factor

STEPS, WARMUP = 60, 12


def factors(scheduler: str, warmup: float = 0, steps: int = STEPS, **changes) -> list[float]:
    config = OptimizationConfig(scheduler=scheduler, warmup=warmup, **changes)
    return [learning_rate_factor(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("scheduler", "formula"),
    [
        ("constant", lambda t: 1.0),
        ("linear", lambda t: 1 - t),
        ("cosine", lambda t: math.cos(math.pi * t / 2) ** 2),
        ("cosine_with_restarts", lambda t: math.cos(math.pi * math.modf(3 * t)[0] / 2) ** 2),
        ("polynomial", lambda t: 1 - 2 * t + t * t),
        ("rex", lambda t: 2 - 2 / (2 - t)),
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


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "polynomial", "rex"])
def test_it_falls_all_the_way(scheduler: str) -> None:
    run = factors(scheduler)
    assert run == sorted(run, reverse=True) and run[-1] < 0.05


def test_restarts_come_back_to_the_peak_three_times() -> None:
    assert factors("cosine_with_restarts").count(1.0) == 3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_run_of_one_step_learns(scheduler: str) -> None:
    assert factors(scheduler, steps=1) == [1.0]


def test_an_unknown_scheduler_is_refused() -> None:
    config = OptimizationConfig()
    object.__setattr__(config, "scheduler", "sine")
    with pytest.raises(ValueError, match="'sine'"):
        learning_rate_factor(config, 0, STEPS)


def torch_factors(make, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = make(optimizer, num_warmup_steps=0, num_training_steps=STEPS, **options)
    rates = []
    for _ in range(STEPS):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("cycles", [1, 2, 5])
def test_restarts_are_those_of_diffusers(cycles: int) -> None:
    expected = torch_factors(get_cosine_with_hard_restarts_schedule_with_warmup, num_cycles=cycles)
    assert factors("cosine_with_restarts", scheduler_cycles=cycles) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_polynomial_is_that_of_diffusers(power: float) -> None:
    expected = torch_factors(get_polynomial_decay_schedule_with_warmup, lr_end=0.0, power=power)
    assert factors("polynomial", scheduler_power=power) == pytest.approx(expected, abs=1e-9)


def test_rex_is_the_papers() -> None:
    """Chen et al., arXiv:2107.04197, section 4: (1 - z) / (1/2 + (1 - z) / 2)."""
    left = [1 - step / STEPS for step in range(STEPS)]
    assert factors("rex") == pytest.approx([z / (0.5 + 0.5 * z) for z in left])


def test_a_warm_up_may_be_a_share_of_the_run() -> None:
    assert factors("linear", 0.2) == factors("linear", WARMUP)
