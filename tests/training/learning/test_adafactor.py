"""Adafactor for all matrices of a shape at once makes the steps of its library."""

from typing import Any

import pytest
import torch
import transformers.optimization
from lora_kiln.training.learning import adafactor
from torch import nn

SHAPES = ((4, 8), (8, 4), (4, 8), (8,), (4, 3, 3, 3), (4, 8), (8, 4), (1,))
FIXED = {"lr": 1e-2, "scale_parameter": False, "relative_step": False, "warmup_init": False, "weight_decay": 0.1}
RELATIVE = {"lr": None, "scale_parameter": True, "relative_step": True, "warmup_init": True, "beta1": 0.9}


def parameters(are_together: bool) -> list[nn.Parameter]:
    """Parameters with a gradient each; together: as views of one tensor."""
    generator = torch.Generator().manual_seed(0)
    made = [nn.Parameter(0.1 * torch.randn(shape, generator=generator)) for shape in SHAPES]
    if are_together:
        order = sorted(made, key=lambda each: each.shape)
        values = torch.cat([each.detach().flatten() for each in order])
        gradients, start = torch.zeros_like(values), 0
        for each in order:
            place = slice(start, start + each.numel())
            each.data, each.grad = values[place].view(each.shape), gradients[place].view(each.shape)
            start += each.numel()
    return made


def step(optimizer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for each in optimizer.param_groups[0]["params"]:
        gradient = torch.randn(each.shape, generator=generator)
        if each.grad is None:
            each.grad = gradient
        else:
            each.grad.copy_(gradient)
    optimizer.step()


@pytest.mark.parametrize("settings", [FIXED, {**FIXED, "beta1": 0.8}, RELATIVE])
@pytest.mark.parametrize("are_together", [False, True])
def test_the_steps_are_those_of_the_library(settings: dict[str, Any], are_together: bool) -> None:
    theirs = transformers.optimization.Adafactor(parameters(False), **settings)
    ours = adafactor.Adafactor(parameters(are_together), **settings)
    for number in range(4):
        for optimizer in (theirs, ours):
            step(optimizer, number)
    for their, our in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(our, their)
    for their, our in zip(theirs.state_dict()["state"].values(), ours.state_dict()["state"].values(), strict=True):
        assert their.keys() == our.keys() and their["step"] == our["step"]
        for name in their.keys() - {"step"}:
            torch.testing.assert_close(our[name], their[name])


def test_it_goes_on_from_a_state_of_the_library_and_gives_one_back() -> None:
    theirs = transformers.optimization.Adafactor(parameters(False), **FIXED)
    for number in range(2):
        step(theirs, number)
    ours = adafactor.Adafactor(parameters(True), **FIXED)
    step(ours, 9)
    for their, our in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        our.data.copy_(their)
    state = {name: {**each} for name, each in theirs.state_dict()["state"].items()}
    state = {
        name: {key: torch.as_tensor(v).clone() if key != "step" else v for key, v in each.items()}
        for name, each in state.items()
    }
    ours.load_state_dict({**theirs.state_dict(), "state": state})
    for number in range(2, 4):
        for optimizer in (theirs, ours):
            step(optimizer, number)
    for their, our in zip(theirs.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(our, their)


def test_a_gradient_that_goes_or_comes_is_seen() -> None:
    ours = adafactor.Adafactor(parameters(False), **FIXED)
    step(ours, 0)
    first, second = ours.param_groups[0]["params"][:2]
    before = first.detach().clone(), second.detach().clone()
    first.grad = None
    ours.step()
    assert torch.equal(first, before[0]) and not torch.equal(second, before[1])
