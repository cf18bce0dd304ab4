"""Optimizers by name."""

import sys

import pytest
import torch
from lora_kiln.training.optimizers import make_optimizer
from lora_kiln.training.problems import InputError

RATE, STEPS = 0.05, 300


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_it_finds_a_minimum(name: str) -> None:
    target = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = make_optimizer(name, [weight], RATE, 0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (weight - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(weight.data, target, atol=0.3, rtol=0)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weight_decay_is_decoupled(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer(name, [weight], RATE, 0.5)
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((2, 2), 1 - RATE * 0.5))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weights_that_begin_at_zero_move_at_the_rate_asked_for(name: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 4))
    optimizer = make_optimizer(name, [weight], 1e-4, 0.0)
    for _ in range(100):
        weight.grad = torch.ones(8, 4)
        optimizer.step()
    assert 0.5e-2 < -weight.data.mean() < 2e-2


def test_parameters_may_come_once() -> None:
    parameters = (parameter for parameter in [torch.nn.Parameter(torch.ones(2))])
    assert len(make_optimizer("adamw", parameters, RATE, 0.0).param_groups[0]["params"]) == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(InputError, match="bitsandbytes"):
        make_optimizer("adamw8bit", [torch.nn.Parameter(torch.ones(2))], RATE, 0.0)


def test_an_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match="'sgd'"):
        make_optimizer("sgd", [torch.nn.Parameter(torch.ones(2))], RATE, 0.0)
