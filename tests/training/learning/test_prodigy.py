"""Prodigy on the device makes the steps of its library."""

import json
from typing import Any

import pytest
import pytorch_optimizer
import torch
from lora_kiln.training.learning import prodigy
from lora_kiln.training.learning.optimizers import load_optimizer_state, optimizer_state
from torch import nn


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((4, 8), (8,), (3, 2, 2))]


def steps(optimizer: Any, first: int, last: int) -> list[float]:
    """Moves towards zero, with noise; gives each step's d."""
    found = []
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        for each in (each for group in optimizer.param_groups for each in group["params"]):
            each.grad = each.detach() + 0.1 * torch.randn(each.shape, generator=generator)
        optimizer.step()
        found.append(float(optimizer.param_groups[0]["d"]))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1, "bias_correction": True, "safeguard_warmup": True, "d0": 1e-4, "d_coef": 0.8},
        {"weight_decay": 0.1, "fixed_decay": True, "growth_rate": 1.02, "beta3": 0.95},
        {"eps": None, "maximize": True, "weight_decay": 0.1, "weight_decouple": False},
    ],
)
def test_the_steps_and_the_rate_are_those_of_the_library(settings: dict[str, Any]) -> None:
    theirs = pytorch_optimizer.Prodigy(parameters(), lr=1.0, foreach=False, **settings)
    ours = prodigy.Prodigy(parameters(), lr=1.0, **settings)
    expected, found = steps(theirs, 0, 30), steps(ours, 0, 30)
    assert found == pytest.approx(expected, rel=1e-4) and (found[-1] > 2 * found[0] or "eps" in settings)
    for their, our in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(our, their, rtol=1e-3, atol=1e-5)


def test_without_any_gradient_nothing_moves() -> None:
    ours = prodigy.Prodigy(parameters(), lr=1.0, weight_decay=0.1)
    for each in ours.param_groups[0]["params"]:
        each.grad = torch.zeros_like(each)
    ours.step()
    for each, before in zip(ours.param_groups[0]["params"], parameters(), strict=True):
        assert torch.equal(each, before)
    assert float(ours.param_groups[0]["d"]) == pytest.approx(1e-6)


def test_a_state_of_the_library_goes_on() -> None:
    """As checkpoints of earlier versions hold it, with plain numbers."""
    theirs = pytorch_optimizer.Prodigy(parameters(), lr=1.0, foreach=False)
    steps(theirs, 0, 10)
    tensors, plain = optimizer_state(theirs)
    ours = prodigy.Prodigy(parameters(), lr=1.0)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    load_optimizer_state(ours, tensors, json.loads(json.dumps(plain)))
    for their, our in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        our.data.copy_(their)
    assert steps(ours, 10, 20) == pytest.approx(steps(theirs, 10, 20), rel=1e-4)
