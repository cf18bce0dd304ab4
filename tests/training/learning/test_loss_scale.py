"""The scale of fp16's loss, in steps of a small net."""

import math
from functools import partial

import pytest
import torch
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.ema import EMA
from lora_kiln.training.learning.loss_scale import FIRST, LEAST, MOST, PATIENCE, LossScale
from lora_kiln.training.learning.objective import batch_loss
from lora_kiln.training.learning.optimizers import make_optimizer
from lora_kiln.training.learning.prediction import Eps
from lora_kiln.training.learning.step import Step
from torch import Tensor, nn

EPS = Eps(torch.linspace(0.5, 2.0, 10))
CPU = torch.device("cpu")


class Net(nn.Module):
    """x_0 from x_t by way of fp16."""

    def __init__(self, weight: float, through: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.weight, self.through = nn.Parameter(torch.full((4,), weight)), through
        self.factor = 1.0

    def forward(self, x_t: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        return (x_t.to(self.through) * self.weight.to(self.through) * self.factor).float()


def step_of(net: Net, scale: LossScale | None, **values: object) -> Step:
    config = LoRAConfig.of(**{"learning_rate": 0.01, "weight_decay": 0.0, "max_grad_norm": 1.0, **values})  # pyright: ignore
    optimizer = make_optimizer(
        config.optimization, [{"params": [net.weight], "learning_rate": config.optimization.learning_rate}]
    )
    loss_of = partial(batch_loss, net, EPS, config.objective)
    return Step(loss_of, optimizer, config.optimization, ema=EMA([net.weight], 0.5), loss_scale=scale)


def batch(size: float = 1.0, weight: float = 1.0, seed: int = 0) -> Batch:
    x_0, noise = torch.randn(2, 2, 1, 1, 4, generator=torch.Generator().manual_seed(seed)) * size
    return Batch(x_0, noise, torch.ones(2), torch.full((2,), weight), torch.zeros(2, 1, 1, 1))


def test_it_changes_nothing_where_nothing_is_lost() -> None:
    found = []
    for scale in (None, LossScale(CPU)):
        net = Net(0.3, torch.float32)
        step = step_of(net, scale)
        for number in range(5):
            step.accumulate(batch(seed=number))
            step.accumulate(batch(seed=9 + number))
            step.update()
        found.append((net.weight.detach().clone(), step.outcome.clone(), step.ema.averages[0].clone()))  # pyright: ignore
    for plain, scaled in zip(*found, strict=True):
        assert torch.equal(plain, scaled)


def test_gradients_below_what_fp16_holds_are_there() -> None:
    norms = []
    for scale in (None, LossScale(CPU)):
        step = step_of(Net(0.3), scale)
        step.accumulate(batch(weight=1e-9))
        step.update()
        norms.append(step.outcome[1].item())
    assert norms[0] == 0.0 and norms[1] > 1e-10


def test_a_step_whose_scaled_gradients_are_too_large_moves_nothing_and_halves_the_scale() -> None:
    scale, net = LossScale(CPU), Net(0.3)
    step = step_of(net, scale)
    before = net.weight.detach().clone()
    moments = []
    for _ in range(20):
        step.accumulate(batch(size=20.0))
        step.update()
        assert step.outcome.isfinite().all() and not step.failed
        if not torch.equal(net.weight.detach(), before):
            break
        moments.append((scale.value.item(), step.outcome[1].item()))
        torch.testing.assert_close(step.ema.averages[0], before)  # pyright: ignore
    assert moments and moments == [(FIRST / 2 ** (number + 1), 0.0) for number in range(len(moments))]
    assert scale.value == moments[-1][0] > LEAST, "the scale stays once it fits"
    assert scale.skipped == len(moments)
    assert not step.optimizer.state or step.optimizer.state[net.weight]["step"] == 1


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_gradients_that_no_scale_helps_fail_the_run(optimizer: str) -> None:
    net = Net(0.3)
    step = step_of(net, LossScale(CPU), optimizer=optimizer)
    before = net.weight.detach().clone()
    net.weight.register_hook(lambda gradient: gradient * float("nan"))
    for _ in range(int(math.log2(FIRST / LEAST))):
        step.accumulate(batch())
        step.update()
        assert not step.failed
    step.accumulate(batch())
    step.update()
    assert step.failed and not step.outcome[1].isfinite() and torch.equal(net.weight.detach(), before)


def test_a_loss_that_is_no_number_fails_at_once() -> None:
    scale = LossScale(CPU)
    net = Net(0.3)
    net.factor = 1e30
    step = step_of(net, scale)
    step.accumulate(batch())
    step.update()
    assert step.failed and scale.value == FIRST


def test_it_rises_after_many_good_steps_and_not_without_end() -> None:
    scale, fine = LossScale(CPU), torch.tensor(1.0)
    values = set()
    doublings = int(math.log2(MOST / FIRST))
    for number in range(1, (doublings + 3) * PATIENCE + 1):
        assert not scale.update(fine, fine)
        values.add(scale.value.item())
        if number < PATIENCE:
            assert scale.value == FIRST
    assert max(values) == MOST and values == {FIRST * 2.0**n for n in range(doublings + 1)}
    assert scale.update(fine, torch.tensor(float("inf"))) and scale.value == MOST / 2 and scale.went_well == 0
