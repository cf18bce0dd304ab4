"""A prediction, an optimizer and an adapter made up here: one row each, and the trainer has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters import KINDS
from lora_kiln.training.adapters.attach import Target, attached, make_adapters
from lora_kiln.training.adapters.base import Adapter, AdapterNames, AddedAdapter, layer_shape, saved
from lora_kiln.training.adapters.flat import FlatParameters
from lora_kiln.training.adapters.lora import init_lora, low_rank
from lora_kiln.training.config import OPTIMIZERS, AdapterConfig, LoRAConfig, ObjectiveConfig, OptimizationConfig
from lora_kiln.training.config.optimizers import ForeignName, LearningRates, OptimizerKind, optimizer_by_foreign_name
from lora_kiln.training.learning.batches import Batch, Example, make_batch
from lora_kiln.training.learning.engine import EagerEngine
from lora_kiln.training.learning.family import Family
from lora_kiln.training.learning.loop import train
from lora_kiln.training.learning.objective import batch_loss
from lora_kiln.training.learning.optimizers import make_optimizer
from lora_kiln.training.learning.prediction import PREDICTIONS, Eps, Prediction, in_float64
from lora_kiln.training.learning.step import Step
from lora_kiln.training.lora.files import read_adapters
from lora_kiln.training.lora.save import save_lora
from lora_kiln.training.run.advice import advice
from lora_kiln.training.run.report import notes_about
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import models
from training_runs import assert_same, changed, dataset, run, stopped_at

ADAMAX = OptimizerKind(
    name="adamax",
    module="torch.optim",
    class_name="Adamax",
    paper="Kingma and Ba, arXiv:1412.6980",
    rates=LearningRates(1e-6, 1e-2, "2e-4"),
    name_in_files="Adamax",
    arguments=("betas", "eps"),
    foreign_names={"adamax": ForeignName()},
    takes_flat_parameters=True,
)


class LoRAFA(AddedAdapter):
    """LoRA whose first factor stays as it was drawn (Zhang et al., arXiv:2308.03303); its file is that of a LoRA."""

    kind = "lora_fa"
    names = AdapterNames(title="LoRA-FA", network_module="networks.lora", lycoris=("lora-fa",))
    notes = ("The first factors of the LoRA stay as they were drawn.",)

    def __init__(self, down: Tensor, up: Tensor, alpha: float):
        super().__init__(down.shape[0], alpha)
        self.register_buffer("down", down)
        self.up = nn.Parameter(up)

    @classmethod
    def new(cls, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, factor: int = -1) -> Adapter:
        down, up = init_lora(layer_shape(layer), rank, generator)
        return cls(down, up, alpha)

    def added(self, layer: nn.Module, x: Tensor) -> Tensor:
        return low_rank(layer, x, self.get_buffer("down"), self.up.to(x.dtype) * self.scale)

    def difference(self, weight: Tensor | None = None) -> Tensor:
        product = self.scale * (self.up.flatten(1) @ self.get_buffer("down").flatten(1))
        return product if weight is None else product.reshape(weight.shape)

    def tensors(self) -> dict[str, Tensor]:
        alpha = torch.tensor(float(self.alpha))
        return {"lora_up.weight": saved(self.up), "lora_down.weight": saved(self.get_buffer("down")), "alpha": alpha}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> Adapter | None:
        return None


class X0(Prediction):
    """F is x_0 itself: c_skip = 0, c_out = 1."""

    name = "x0"

    def c_skip(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)

    def space_weight(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(in_float64(sigma))

    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma)

    def debiased_weight(self, snr: Tensor) -> Tensor:
        return snr.sqrt()


@pytest.fixture(autouse=True)
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, ADAMAX.name, ADAMAX)
    monkeypatch.setitem(KINDS, LoRAFA.kind, LoRAFA)
    monkeypatch.setitem(PREDICTIONS, X0.name, X0)


def losses_of_the_core(prediction: Prediction, optimizer: str = "adamw", adapter: str = "lora") -> list[float]:
    """The losses of a net of two layers that learns one picture."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).requires_grad_(False)
    for parameter in net.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    targets = [Target(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    adapters = make_adapters(targets, AdapterConfig(kind=adapter, rank=8), seed=0)
    flat = FlatParameters(adapters.values(), torch.device("cpu"), torch.float32)
    optimization = OptimizationConfig(optimizer=optimizer, learning_rate=3e-3, scheduler="constant", batch_size=4)
    family, example = Family(prediction), Example(torch.randn(1, 4, 4, generator=generator))

    def predict(x_t: Tensor, sigma: Tensor, cond: object) -> Tensor:
        return net(x_t.flatten(1)).reshape(x_t.shape)

    def batch_at(step: int, micro: int) -> Batch:
        return make_batch([example] * optimization.batch_size, family, ObjectiveConfig(), (0, step, micro))

    groups = [{"params": [flat.values], "learning_rate": optimization.learning_rate}]
    loss_of: Callable[[Batch], tuple[Tensor, Tensor]] = partial(batch_loss, predict, prediction, ObjectiveConfig())
    step = Step(loss_of, make_optimizer(optimization, groups), optimization, flats=[flat])
    losses: list[float] = []
    with attached(targets, adapters):
        train(EagerEngine(step), batch_at, optimization, 80, lambda _, loss, rate: losses.append(loss))
    return losses


@pytest.mark.parametrize(
    ("prediction", "optimizer", "adapter"),
    [(Eps, "adamax", "lora"), (Eps, "adamw", "lora_fa"), (X0, "adamw", "lora"), (X0, "adamax", "lora_fa")],
)
def test_the_core_learns_with_it(prediction: type[Prediction], optimizer: str, adapter: str) -> None:
    losses = losses_of_the_core(prediction(torch.linspace(0.5, 2.0, 100)), optimizer, adapter)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_a_whole_run_learns_with_it_and_its_file_tells_of_it(tmp_path: Path) -> None:
    small = models.sd15()
    trained = run(changed(optimizer="adamax", optimizer_args="eps=1e-7", adapter="lora_fa", save_precision="fp32"))
    assert "lora_fa on" in trained.report and LoRAFA.notes[0] in trained.report
    path = save_lora(tmp_path / "rows.safetensors", trained.lora, trained.lora.metadata)
    lora = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_optimizer"].startswith("Adamax(") and "eps=1e-7" in metadata["ss_optimizer"]
    assert metadata["ss_network_module"] == "networks.lora"
    found = read_adapters(lora, host.layer_names(small.model, small.clip))
    assert found.adapters and not found.unknown
    assert any(adapter.difference().any() for adapter in found.adapters.values())


def test_a_run_with_it_goes_on_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    config = changed(optimizer="adamax", adapter="lora_fa")
    stopped_at(monkeypatch, 2, config, "stopped")
    assert_same(run(config, "stopped"), run(config, "whole"))


def test_config_advice_and_report_know_it() -> None:
    config = LoRAConfig.of(optimizer="adamax", learning_rate=1.0, adapter="lora_fa")
    assert any("high for adamax" in note and "2e-4" in note for note in advice(config, "sd_v1", dataset()))
    assert notes_about(LoRAConfig(), "x0", has_convolutions=True) == []
    assert optimizer_by_foreign_name("torch.optim.Adamax") == (ADAMAX, ForeignName())
