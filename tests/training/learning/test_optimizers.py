"""Optimizers by name."""

import copy
import json
import math
import sys
from typing import Any

import pytest
import torch
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import OPTIMIZERS, OptimizationConfig
from lora_kiln.training.learning.optimizers import (
    for_use,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    rate_factor,
)
from torch import nn

RATE, STEPS = 0.05, 300
HERE = [name for name in OPTIMIZERS if name != "adamw8bit"]
"""bitsandbytes wants a GPU."""
RATES = {"prodigy": 1.0, "lion": 0.01}


def optimizer_of(name: str, parameters, rate: float = RATE, decay: float = 0.0, args: str = "") -> Any:
    config = OptimizationConfig(optimizer=name, learning_rate=rate, weight_decay=decay, optimizer_args=args)
    return make_optimizer(config, [{"params": list(parameters), "learning_rate": rate}])


def fit(name: str, steps: int = STEPS, args: str = "") -> tuple[nn.Parameter, nn.Parameter, Any]:
    """Trains a product up @ down, up from zero, towards a matrix of rank 2."""
    generator = torch.Generator().manual_seed(0)
    down = nn.Parameter(torch.randn(2, 4, generator=generator) * 0.5)
    up = nn.Parameter(torch.zeros(6, 2))
    optimizer = optimizer_of(name, [down, up], RATES.get(name, RATE), 0.0, args)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(down, up).backward()
        optimizer.step()
    return down, up, optimizer


def loss_of(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(6, 2, generator=generator) @ torch.randn(2, 4, generator=generator)
    return (up @ down - target).square().sum()


@pytest.mark.parametrize("name", HERE)
def test_it_finds_a_minimum_from_a_matrix_of_zeros(name: str) -> None:
    down, up, optimizer = fit(name)
    with for_use(optimizer):
        assert loss_of(down, up) < 0.02 * loss_of(down, torch.zeros(6, 2))


# ---------------------------------------------------------------- what is kept of it


@pytest.mark.parametrize("name", HERE)
def test_what_it_gathered_goes_on_under_the_settings_of_another_recipe(name: str) -> None:
    *_, before = fit(name, 5)
    tensors, plain = optimizer_state(before)
    settings = {"betas": "0.5,0.6"} if "betas" in before.defaults else {"clip_threshold": "2.0"}
    args = " ".join(f"{key}={value}" for key, value in settings.items())
    after = optimizer_of(name, before.param_groups[0]["params"], RATES.get(name, RATE), 0.3, args)
    load_optimizer_state(after, tensors, json.loads(json.dumps(plain)))
    group, told = after.param_groups[0], optimizer_state(after)
    assert group["weight_decay"] == 0.3 and group.get("betas", (0.5, 0.6)) == (0.5, 0.6)
    assert group.get("clip_threshold", 2.0) == 2.0
    assert told[1] == plain and told[0].keys() == tensors.keys()
    assert all(torch.equal(told[0][key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", HERE)
def test_nothing_of_later_steps_stays_when_it_goes_back(name: str) -> None:
    down, up, optimizer = fit(name, 0)
    begun = optimizer_state(optimizer)
    for _ in range(5):
        loss_of(down, up).backward()
        optimizer.step()
    assert optimizer_state(optimizer) != begun
    load_optimizer_state(optimizer, *begun)
    assert optimizer_state(optimizer) == begun == ({}, {"state": {}, "groups": [{}]})


# ---------------------------------------------------------------- against the papers' formulas


def steps_of(name: str, rate: float, decay: float, steps: int, args: str = "") -> tuple[torch.Tensor, Any]:
    """A parameter after some steps on gradients that are a function of the step."""
    weight = nn.Parameter(start())  # in double: Prodigy begins with steps of 1e-6
    optimizer = optimizer_of(name, [weight], rate, decay, args)
    for step in range(steps):
        weight.grad = gradient(step, weight.detach())
        optimizer.step()
    return weight, optimizer


def start() -> torch.Tensor:
    return torch.tensor([[1.0, -2.0], [0.0, 0.5]], dtype=torch.float64)


def gradient(step: int, weight: torch.Tensor) -> torch.Tensor:
    """Of a bowl around 3, with something that swings."""
    return (weight.double() - 3.0) * (1.0 + 0.5 * math.sin(step))


def adamw(rate: float, decay: float, steps: int) -> torch.Tensor:
    """arXiv:1711.05101, algorithm 2."""
    weight, m, v = start(), torch.zeros(2, 2), torch.zeros(2, 2)
    for step in range(steps):
        g, t = gradient(step, weight), step + 1
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        weight = weight - rate * update - rate * decay * weight
    return weight


def lion(rate: float, decay: float, steps: int) -> torch.Tensor:
    """arXiv:2302.06675, algorithm 2."""
    weight, m = start(), torch.zeros(2, 2, dtype=torch.float64)
    for step in range(steps):
        g = gradient(step, weight)
        weight = weight - rate * ((0.9 * m + 0.1 * g).sign() + decay * weight)
        m = 0.99 * m + 0.01 * g
    return weight


def prodigy(rate: float, decay: float, steps: int) -> torch.Tensor:
    """arXiv:2306.06101, algorithm 4, with decoupled decay."""
    weight, d, r = start(), 1e-6, 0.0
    m, v, s = (torch.zeros(2, 2, dtype=torch.float64) for _ in range(3))
    root = 0.999**0.5
    for step in range(steps):
        g = gradient(step, weight)
        m, v = 0.9 * m + 0.1 * d * g, 0.999 * v + 0.001 * d * d * g * g
        r = root * r + d * d * rate * float((g * (start() - weight)).sum())
        s = root * s + d * d * rate * g
        used, d = d, max(d, r / float(s.abs().sum()))
        weight = weight - used * rate * (m / (v.sqrt() + d * 1e-8) + decay * weight)
    return weight


def schedule_free(rate: float, decay: float, steps: int) -> torch.Tensor:
    """arXiv:2405.15682, algorithm 1: the average x, from z and the gradient at y."""
    x = z = start()
    v = torch.zeros(2, 2, dtype=torch.float64)
    for step in range(steps):
        t = step + 1
        y = 0.1 * z + 0.9 * x
        g = gradient(step, y)
        v = 0.999 * v + 0.001 * g * g
        z = z - rate * (g / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + decay * y)
        x = (1 - 1 / t) * x + z / t
    return x


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "formula", "rate"),
    [("adamw", adamw, 0.05), ("lion", lion, 0.01), ("prodigy", prodigy, 1.0), ("schedule_free", schedule_free, 0.05)],
)
def test_it_takes_the_papers_steps(name: str, formula, rate: float, decay: float) -> None:
    weight, optimizer = steps_of(name, rate, decay, 40)
    with for_use(optimizer):
        torch.testing.assert_close(weight.detach().double(), formula(rate, decay, 40), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "schedule_free"])
def test_weight_decay_is_decoupled(name: str) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = optimizer_of(name, [weight], RATE, 0.5)
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.full((2, 2), 1 - RATE * 0.5))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "schedule_free"])
def test_weights_that_begin_at_zero_move_at_the_rate_asked_for(name: str) -> None:
    weight = nn.Parameter(torch.zeros(8, 4))
    optimizer = optimizer_of(name, [weight], 1e-4)
    for _ in range(100):
        weight.grad = torch.ones(8, 4)
        optimizer.step()
    assert 0.5e-2 < -weight.data.mean() < 2e-2


@pytest.mark.parametrize("name", HERE)
def test_it_goes_on_from_its_state(name: str) -> None:
    down, up, optimizer = fit(name, steps=20)
    others = [nn.Parameter(down.detach().clone()), nn.Parameter(up.detach().clone())]
    other = optimizer_of(name, others, RATES.get(name, RATE))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair, each in (((down, up), optimizer), (others, other)):
        for _ in range(20):
            each.zero_grad()
            loss_of(*pair).backward()
            each.step()
    assert torch.equal(down, others[0]) and torch.equal(up, others[1])
    assert rate_factor(optimizer) == rate_factor(other)


# ---------------------------------------------------------------- groups


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "schedule_free"])
def test_groups_move_at_their_own_rates(name: str) -> None:
    fast, slow = nn.Parameter(torch.zeros(3, 3)), nn.Parameter(torch.zeros(3, 3))
    config = OptimizationConfig(optimizer=name, learning_rate=1e-3)
    groups = [{"params": [fast], "learning_rate": 1e-3}, {"params": [slow], "learning_rate": 1e-4}]
    optimizer = make_optimizer(config, groups)
    fast.grad, slow.grad = torch.ones(3, 3), torch.ones(3, 3)
    optimizer.step()
    torch.testing.assert_close(fast.data, 10 * slow.data)
    assert [group["learning_rate"] for group in optimizer.param_groups] == [1e-3, 1e-4]
    assert "lr" not in groups[0]


def test_prodigy_has_one_rate_for_all() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "learning_rate": rate} for rate in (1.0, 0.5)]
    config = OptimizationConfig(optimizer="prodigy", learning_rate=1.0)
    with pytest.raises(InputError, match="text_encoder_learning_rate"):
        make_optimizer(config, groups)
    for group in groups:
        group["learning_rate"] = 1.0
    assert len(make_optimizer(config, groups).param_groups) == 2


def test_prodigys_factor_is_its_d() -> None:
    down, up, optimizer = fit("prodigy")
    assert rate_factor(optimizer) == optimizer.param_groups[0]["d"] > 1e-3
    assert rate_factor(fit("adamw", steps=1)[2]) == 1.0


# ---------------------------------------------------------------- Schedule-Free in use


def test_in_use_schedule_free_is_its_average_and_then_as_before() -> None:
    down, up, optimizer = fit("schedule_free", steps=30)
    before = up.detach().clone()
    with for_use(optimizer):
        in_use = up.detach().clone()
        with for_use(optimizer):
            assert torch.equal(up, in_use)
        assert torch.equal(up, in_use)
    z = optimizer.state[up]["z"]
    torch.testing.assert_close(before, 0.1 * z + 0.9 * in_use)
    assert torch.equal(up, before) and not torch.equal(in_use, before)


def test_looking_does_not_disturb_schedule_free() -> None:
    def train(looks: bool) -> torch.Tensor:
        down, up, optimizer = fit("schedule_free", steps=5)
        for _ in range(10):
            if looks:
                with torch.inference_mode(), for_use(optimizer):
                    pass
            optimizer.zero_grad()
            loss_of(down, up).backward()
            optimizer.step()
        return up.detach()

    assert torch.equal(train(True), train(False))


def test_schedule_free_trains_on_after_an_error_in_use() -> None:
    down, up, optimizer = fit("schedule_free", steps=5)
    before = up.detach().clone()
    with pytest.raises(KeyError), for_use(optimizer):
        raise KeyError
    assert torch.equal(up, before) and all(group["train_mode"] for group in optimizer.param_groups)


@pytest.mark.parametrize("name", [name for name in HERE if name != "schedule_free"])
def test_in_use_other_optimizers_change_nothing(name: str) -> None:
    down, up, optimizer = fit(name, steps=3)
    before = up.detach().clone()
    with for_use(optimizer):
        assert torch.equal(up, before)


# ---------------------------------------------------------------- optimizer_args


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("adamw", "betas=0.8,0.9 eps=1e-6", {"betas": (0.8, 0.9), "eps": 1e-6}),
        ("adamw", " betas = (0.8, 0.9)  amsgrad=True", {"betas": (0.8, 0.9), "amsgrad": True}),
        ("adafactor", "clip_threshold=0.5", {"clip_threshold": 0.5, "scale_parameter": False}),
        ("lion", "betas=0.95,0.98", {"betas": (0.95, 0.98)}),
        ("prodigy", "d_coef=2 safeguard_warmup=True", {"d_coef": 2, "safeguard_warmup": True}),
        ("prodigy", "decouple=False use_bias_correction=True", {"weight_decouple": False, "bias_correction": True}),
        ("schedule_free", "r=0.5 weight_lr_power=1", {"r": 0.5, "weight_lr_power": 1}),
        ("adamw", "", {"betas": (0.9, 0.999)}),
    ],
)
def test_its_settings_reach_it(name: str, args: str, expected: dict) -> None:
    group = optimizer_of(name, [nn.Parameter(torch.ones(2, 2))], 1.0, 0.0, args).param_groups[0]
    assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize("name", HERE)
def test_an_unknown_setting_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(InputError, match=r"'momentun'.*it takes: .*=") as error:
        optimizer_of(name, [nn.Parameter(torch.ones(2))], 1.0, 0.0, "momentun=0.9")
    assert "weight_decay=" not in str(error.value) and "kwargs" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ("eps=__import__('os')", "eps"),
        ("eps='1e-8'", "eps"),
        ("eps=[1e-8]", "eps"),
        ("eps=1j", "eps"),
        ("betas=0.9,'a'", "betas"),
        ("betas=((0.9,),)", "betas"),
        ("eps=", "eps"),
        ("eps", "eps"),
        ("eps=" + "(" * 500, "eps"),
        ("betas=0.9", "betas"),
        ("betas=1.5,0.9", "betas"),
        ("lr=1e-3", "learning_rate"),
        ("weight_decay=0.1", "weight_decay"),
        ("params=1", "params"),
    ],
)
def test_an_ill_formed_setting_is_refused(args: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        optimizer_of("adamw", [nn.Parameter(torch.ones(2))], RATE, 0.0, args)


def test_all_wrong_settings_are_listed_at_once() -> None:
    with pytest.raises(InputError) as error:
        optimizer_of("adamw", [nn.Parameter(torch.ones(2))], RATE, 0.0, "eps=x lr=1 nonsense=2 betas=0.9,0.99")
    assert len(error.value.problems) == 3


def test_a_fault_that_is_not_the_settings_is_told_as_it_is() -> None:
    weight = nn.Parameter(torch.ones(2))
    groups = [{"params": [weight], "learning_rate": RATE}] * 2
    with pytest.raises(ValueError, match="more than one parameter group") as error:
        make_optimizer(OptimizationConfig(), groups)
    assert not isinstance(error.value, InputError)


# ---------------------------------------------------------------- packages


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("adamw8bit", "bitsandbytes"),
        ("lion", "pytorch_optimizer"),
        ("prodigy", "pytorch_optimizer"),
        ("schedule_free", "pytorch_optimizer"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, OPTIMIZERS[name].module, None)
    with pytest.raises(InputError, match=rf"{name}.*package {package}.*pip install {package}"):
        optimizer_of(name, [nn.Parameter(torch.ones(2))], rate=1.0)


def test_every_optimizer_of_the_config_has_a_source() -> None:
    assert all(name == kind.name and kind.module and kind.class_name for name, kind in OPTIMIZERS.items())


def test_an_unknown_optimizer_is_refused() -> None:
    config = OptimizationConfig()
    object.__setattr__(config, "optimizer", "sgd")
    with pytest.raises(ValueError, match="'sgd'"):
        make_optimizer(config, [{"params": [nn.Parameter(torch.ones(2))], "learning_rate": RATE}])
