"""The moving average of what is trained."""

import pytest
import torch
from lora_kiln.training.learning.ema import EMA
from torch import nn

STEPS = 300


def averaged(decay: float, steps: int = STEPS) -> tuple[EMA, nn.Parameter, list[float]]:
    """An average over a parameter that walks, and where it has been."""
    parameter = nn.Parameter(torch.zeros(2, 3))
    ema, places = EMA([parameter], decay), [0.0]
    for step in range(steps):
        parameter.data.fill_(1.0 + 0.1 * step)
        places.append(1.0 + 0.1 * step)
        ema.update()
    return ema, parameter, places


def closed_form(decay: float, places: list[float]) -> float:
    """The sum of the places, each times its share and all the decays after it."""
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(len(places) - 1)]
    total, after = 0.0, 1.0
    for place, d in zip(places[:0:-1], reversed(decays), strict=True):
        total += after * (1 - d) * place
        after *= d
    return total + after * places[0]


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("steps", [1, 20, STEPS])
def test_it_is_the_weighted_sum_of_the_past(decay: float, steps: int) -> None:
    ema, parameter, places = averaged(decay, steps)
    with ema.applied():
        torch.testing.assert_close(parameter.data, torch.full((2, 3), closed_form(decay, places)), rtol=1e-5, atol=1e-6)


def test_the_parameters_train_on_as_they_were() -> None:
    ema, parameter, places = averaged(0.99)
    before = parameter.detach().clone()
    with ema.applied():
        assert not torch.equal(parameter, before)
    assert torch.equal(parameter, before) and parameter.requires_grad


def test_the_parameters_come_back_after_an_error() -> None:
    ema, parameter, _ = averaged(0.99)
    before = parameter.detach().clone()
    with pytest.raises(KeyError), ema.applied():
        raise KeyError
    assert torch.equal(parameter, before)


def test_looking_at_the_average_does_not_change_it() -> None:
    ema, parameter, _ = averaged(0.99)
    seen = []
    for _ in range(2):
        with ema.applied():
            seen.append(parameter.detach().clone())
    assert torch.equal(*seen)


def test_it_works_where_samples_are_drawn() -> None:
    ema, parameter, _ = averaged(0.99)
    before = parameter.detach().clone()
    with torch.inference_mode(), ema.applied():
        pass
    assert torch.equal(parameter, before)
    (parameter * 2).sum().backward()
    ema.update()
    with ema.applied():
        assert parameter.detach().isfinite().all()


def test_low_precision_parameters_are_averaged_in_full() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = EMA([parameter], 0.9999)
    ema.updates[torch.device("cpu")].fill_(1e6)  # past the warm-up
    parameter.data.fill_(2.0)
    for _ in range(10):
        ema.update()
    assert ema.averages[0].item() == pytest.approx(2 - 0.9999**10, rel=1e-5)


def test_a_step_that_failed_leaves_the_average_as_it_was() -> None:
    ema, parameter, _ = averaged(0.9, steps=5)
    before, count = ema.averages[0].clone(), ema.updates[torch.device("cpu")].clone()
    parameter.data.fill_(100.0)
    ema.update(failed=torch.ones(()))
    assert torch.equal(ema.averages[0], before) and torch.equal(ema.updates[torch.device("cpu")], count)
