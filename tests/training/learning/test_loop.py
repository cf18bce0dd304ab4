"""The loop, with a two-layer net in place of a diffusion model."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from lora_kiln.training.basics.randomness import tensor_generator
from lora_kiln.training.config import LoRAConfig, ObjectiveConfig
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.engine import EagerEngine
from lora_kiln.training.learning.loop import Diverged, train
from lora_kiln.training.learning.objective import batch_loss, sample_losses
from lora_kiln.training.learning.optimizers import make_optimizer
from lora_kiln.training.learning.prediction import Eps
from lora_kiln.training.learning.step import Step
from torch import nn

SHAPE = (1, 4, 4)
EPS = Eps(torch.linspace(0.5, 2.0, 10))
STEPS, BATCH = 30, 4
RECIPE = dict(learning_rate=0.01, scheduler="constant", steps=STEPS, batch_size=BATCH)


class Net(nn.Module):
    """x_0 from x_t and a condition, with two layers."""

    def __init__(self) -> None:
        super().__init__()
        features = SHAPE[0] * SHAPE[1] * SHAPE[2]
        self.layers = nn.Sequential(nn.Linear(features, 8), nn.Linear(8, features))
        for number, parameter in enumerate(self.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=tensor_generator(number)) * 0.3

    def forward(self, x_t: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return self.layers(x_t.flatten(1)).reshape(x_t.shape) + cond


def batch_at(step: int, micro: int, size: int = BATCH) -> Batch:
    """Data near 1, with noise of the step's own."""
    generator = tensor_generator(step, micro)
    x_0 = 1.0 + 0.1 * torch.randn(size, *SHAPE, generator=generator)
    noise = torch.randn(size, *SHAPE, generator=generator)
    sigma = EPS.sigmas[torch.randint(0, 10, (size,), generator=generator)]
    return Batch(x_0, noise, sigma, torch.ones(size), torch.zeros(size, 1, 1, 1))


def run(net: Net, steps: int = STEPS, batches=batch_at, on_step=None, **changes) -> list[tuple[int, float, float]]:
    """Trains the net; gives what on_step heard."""
    config = LoRAConfig.of(**{**RECIPE, **changes})
    optimizer = make_optimizer(
        config.optimization,
        [{"params": list(net.parameters()), "learning_rate": config.optimization.learning_rate}],
    )
    heard: list[tuple[int, float, float]] = []

    def on_step_done(*step) -> None:
        heard.append(step)
        if on_step:
            on_step(*step)

    train(engine_of(net, config, optimizer), batches, config.optimization, steps, on_step_done)
    return heard


def engine_of(net: Net, config: LoRAConfig, optimizer: torch.optim.Optimizer) -> EagerEngine:
    return EagerEngine(Step(partial(batch_loss, net, EPS, config.objective), optimizer, config.optimization))


def weights(net: Net) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()]).clone()


def test_the_loss_falls() -> None:
    losses = [loss for _, loss, _ in run(Net(), steps=100)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_on_step_hears_every_step_once() -> None:
    assert [step for step, _, _ in run(Net())] == list(range(1, STEPS + 1))


def test_a_run_can_be_repeated_exactly() -> None:
    one, other = Net(), Net()
    assert run(one) == run(other) and torch.equal(weights(one), weights(other))


def test_the_first_loss_is_that_of_the_untrained_net() -> None:
    first = run(Net(), steps=1)[0][1]
    assert first == pytest.approx(batch_loss(Net(), EPS, ObjectiveConfig(), batch_at(0, 0))[0].item(), rel=1e-6)


def test_the_learning_rate_follows_its_schedule() -> None:
    rates = [rate for *_, rate in run(Net(), scheduler="linear", warmup=10)]
    assert rates[:11] == pytest.approx([0.01 * (step + 1) / 11 for step in range(10)] + [0.01])
    assert rates[10:] == pytest.approx([0.01 * (1 - step / 20) for step in range(20)])


def test_accumulated_batches_are_one_large_batch() -> None:
    def halves(step: int, micro: int) -> Batch:
        whole = batch_at(step, 0)
        rows = slice(micro * 2, micro * 2 + 2)
        return Batch(*(part[rows] for part in (whole.x_0, whole.noise, whole.sigma, whole.weight, whole.cond)))

    whole, accumulated = Net(), Net()
    expected = [loss for _, loss, _ in run(whole)]
    losses = [loss for _, loss, _ in run(accumulated, batches=halves, gradient_accumulation=2, batch_size=2)]
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(weights(accumulated), weights(whole), rtol=1e-3, atol=1e-4)


def test_gradients_are_clipped_to_their_norm() -> None:
    clipped, free = Net(), Net()
    for net, norm in ((clipped, 1e-3), (free, 0.0)):
        config = LoRAConfig.of(**{**RECIPE, "learning_rate": 1.0}, max_grad_norm=norm)
        groups = [{"params": list(layer.parameters()), "learning_rate": 1.0} for layer in net.layers]
        engine = engine_of(net, config, torch.optim.SGD(groups))
        train(engine, batch_at, config.optimization, 1, lambda *_: None)
    assert (weights(clipped) - weights(Net())).norm() == pytest.approx(1e-3, rel=1e-3)
    assert (weights(free) - weights(Net())).norm() > 1e-2


def test_each_group_has_its_own_rate() -> None:
    net = Net()
    groups = [
        {"params": list(layer.parameters()), "learning_rate": rate}
        for layer, rate in zip(net.layers, (0.01, 0.002), strict=True)
    ]
    config = LoRAConfig.of(**{**RECIPE, "scheduler": "linear", "warmup": 10})
    optimizer = make_optimizer(config.optimization, groups)
    heard = []

    def on_step(step: int, loss: float, rate: float) -> None:
        heard.append((rate, *(group["lr"] for group in optimizer.param_groups)))

    train(engine_of(net, config, optimizer), batch_at, config.optimization, STEPS, on_step)
    for told, first, second in heard:
        assert (told, second) == pytest.approx((first, first / 5))
    assert heard[0][0] == pytest.approx(0.01 / 11) and heard[10][0] == pytest.approx(0.01)


def test_a_condition_may_carry_a_graph() -> None:
    """As with a text encoder that is trained: each forward pass has a graph of its own."""
    net, text = Net(), nn.Parameter(torch.zeros(1, 1, 1, 1))

    def batches(step: int, micro: int) -> Batch:
        batch = batch_at(step, micro)
        return replace(batch, cond=batch.cond + 3.0 * text)

    config = LoRAConfig.of(**RECIPE, gradient_accumulation=2)
    groups = [{"params": [*net.parameters()], "learning_rate": 0.01}, {"params": [text], "learning_rate": 0.05}]
    losses: list[float] = []
    engine = engine_of(net, config, make_optimizer(config.optimization, groups))
    train(engine, batches, config.optimization, STEPS, lambda step, loss, rate: losses.append(loss))
    assert text.item() != 0.0 and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"), [("lion", 1e-3), ("prodigy", 1.0), ("schedule_free", 0.02), ("adafactor", 0.01)]
)
def test_the_loss_falls_with_every_optimizer(optimizer: str, learning_rate: float) -> None:
    heard = run(Net(), steps=150, optimizer=optimizer, learning_rate=learning_rate, weight_decay=0.0)
    losses = [loss for _, loss, _ in heard]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_prodigys_rate_is_told_as_it_takes_effect() -> None:
    rates = [rate for *_, rate in run(Net(), optimizer="prodigy", learning_rate=1.0, scheduler="linear")]
    assert rates[0] == pytest.approx(1e-6) and max(rates) > 1e-4


def test_a_stop_does_not_hide_that_a_step_before_it_was_no_number() -> None:
    """Its state is not one to go on from."""
    net, config = Net(), LoRAConfig.of(**RECIPE)
    optimizer = make_optimizer(config.optimization, [{"params": list(net.parameters()), "learning_rate": 0.01}])

    def batches(step: int, micro: int) -> Batch:
        batch = batch_at(step, micro)
        return replace(batch, cond=batch.cond + math.nan) if step == 2 else batch

    def stop(step: int) -> bool:
        if step == 3:
            raise KeyboardInterrupt
        return False

    with pytest.raises(Diverged, match="at step 3") as ended:
        train(engine_of(net, config, optimizer), batches, config.optimization, 5, lambda *_: None, pauses_at=stop)
    assert isinstance(ended.value.__cause__, KeyboardInterrupt)


SETTINGS = [
    dict(debiased_estimation=True), dict(min_snr_gamma=1.0), dict(loss="huber"), dict(loss="smooth_l1"),
    dict(loss="huber", huber_c=0.5), dict(loss="huber", huber_schedule="constant"),
]  # fmt: skip


@pytest.mark.parametrize("changes", SETTINGS)
def test_the_loss_is_the_configs(changes: dict) -> None:
    config, batch = LoRAConfig.of(**changes), batch_at(0, 0)
    expected = sample_losses(Net(), EPS, ObjectiveConfig(**{"huber_schedule": "snr", **changes}), batch)
    loss, _ = batch_loss(Net(), EPS, config.objective, batch)
    assert loss.item() == pytest.approx(expected.mean().item())
    assert loss.item() != pytest.approx(batch_loss(Net(), EPS, ObjectiveConfig(), batch)[0].item(), rel=1e-3)


def test_masks_and_perturbation_reach_the_loss() -> None:
    batch = batch_at(0, 0)
    mask, perturbation = torch.rand(BATCH, 1, 4, 4), torch.randn(BATCH, *SHAPE)
    plain = sample_losses(Net(), EPS, ObjectiveConfig(), batch).mean().item()
    for more in (dict(mask=mask), dict(perturbation=perturbation)):
        changed = replace(batch, **more)
        expected = sample_losses(Net(), EPS, ObjectiveConfig(), changed).mean().item()
        assert batch_loss(Net(), EPS, ObjectiveConfig(), changed)[0].item() == pytest.approx(expected)
        assert expected != pytest.approx(plain, rel=1e-3)


def test_a_sample_of_weight_zero_teaches_nothing() -> None:
    batch = batch_at(0, 0)
    gradients = []
    for target in (batch.x_0, torch.cat([batch.x_0[:3], batch.x_0[3:] + 5.0])):
        net = Net()
        weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
        noise = batch.noise + (batch.x_0 - target) / batch.sigma.reshape(-1, 1, 1, 1)  # the same x_t
        changed = Batch(target, noise, batch.sigma, weight, batch.cond)
        batch_loss(net, EPS, ObjectiveConfig(), changed)[0].backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    torch.testing.assert_close(*gradients)


def broken_at(step_of_break: int, value: float):
    def batches(step: int, micro: int) -> Batch:
        batch = batch_at(step, micro)
        if step == step_of_break:
            batch.cond.fill_(value)
        return batch

    return batches


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_before_it_does_harm(value: float) -> None:
    until_then, diverged = Net(), Net()
    run(until_then, steps=5)
    with pytest.raises(Diverged, match="at step 6.*learning_rate"):
        run(diverged, batches=broken_at(5, value))
    assert torch.equal(weights(diverged), weights(until_then))


def test_gradients_that_are_no_numbers_end_the_run_before_they_do_harm() -> None:
    class Rooted(Net):
        """At the sixth step its gradient is not a number, its loss is one."""

        def forward(self, x_t, sigma, cond):
            root = (0.0 * self.layers[0].weight[0, 0]).sqrt()
            return super().forward(x_t, sigma, cond) + (root if self.is_broken else 0.0)

    net = Rooted()
    net.is_broken = False
    kept: list[torch.Tensor] = []

    def on_step(step: int, *_) -> None:
        kept.append(weights(net))
        net.is_broken = step == 5

    with pytest.raises(Diverged):
        run(net, on_step=on_step)
    assert weights(net).isfinite().all() and torch.equal(weights(net), kept[4])


def test_what_on_step_raises_ends_the_run_with_that_step_learned() -> None:
    net, reference = Net(), Net()
    run(reference, steps=3)

    def stop(step: int, *_) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(net, on_step=stop)
    assert torch.equal(weights(net), weights(reference))
