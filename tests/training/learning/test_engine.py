"""CUDA graphs of steps; on a GPU alone, with either of torch's allocators (PYTORCH_CUDA_ALLOC_CONF chooses)."""

import gc
import weakref
from functools import partial

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import Target, attached, make_adapters
from lora_kiln.training.adapters.dropout import draw_dropout
from lora_kiln.training.adapters.flat import FlatParameters
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.learning import engine as room
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.engine import EagerEngine, Engine, GraphEngine
from lora_kiln.training.learning.objective import batch_loss
from lora_kiln.training.learning.optimizers import make_capturable, make_optimizer
from lora_kiln.training.learning.prediction import Eps
from lora_kiln.training.learning.step import Step
from torch import nn

pytestmark = pytest.mark.gpu
EPS = Eps(torch.linspace(0.5, 2.0, 10))
CONFIG = LoRAConfig.of(learning_rate=0.01)


class Net(nn.Module):
    """Three layers; `trouble` is called in each forward pass."""

    def __init__(self, trouble=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 64)).cuda()
        self.trouble = trouble

    def forward(self, x_t: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        x = self.layers[:2](x_t.flatten(1))
        if self.trouble is not None:
            self.trouble(x)
        return self.layers[2](x).reshape(x_t.shape) + cond


def batch(seed: int, size: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x_0, noise = (torch.randn(size, 1, 8, 8, generator=generator).cuda() for _ in range(2))
    sigma = EPS.sigmas[torch.randint(0, 10, (size,), generator=generator)].cuda()
    return Batch(x_0, noise, sigma, torch.ones(size).cuda(), torch.zeros(size, 1, 1, 1).cuda())


def made(kind, net: Net, said: list[str], config: LoRAConfig = CONFIG):
    rate = config.optimization.learning_rate
    optimizer = make_optimizer(config.optimization, [{"params": list(net.parameters()), "learning_rate": rate}])
    assert make_capturable(optimizer) == (config.optimization.optimizer == "adamw")
    step = Step(partial(batch_loss, net, EPS, config.objective), optimizer, config.optimization)
    return GraphEngine(step, said.append, (host.Interrupted,)) if kind is GraphEngine else EagerEngine(step)


def losses(engine, steps: int = 8) -> list[float]:
    found = []
    for number in range(steps):
        engine.accumulate(batch(number, size=4 if number % 3 else 2))
        engine.update()
        found.append(engine.step.outcome[0].item())
    return found


def test_a_graph_gives_what_ops_give() -> None:
    said: list[str] = []
    plain, recorded = made(EagerEngine, Net(), said), made(GraphEngine, Net(), said)
    assert losses(recorded) == losses(plain) and not said and recorded.graphs == 2
    recorded.release()
    assert recorded.graphs == 0 and losses(recorded) == losses(plain)


@pytest.mark.parametrize("name", ["adafactor", "lion", "prodigy", "schedule_free"])
def test_the_passes_are_recorded_whatever_the_optimizer(name: str) -> None:
    config = LoRAConfig.of(optimizer=name, learning_rate=1.0 if name == "prodigy" else 0.01, scheduler="constant")
    said: list[str] = []
    plain, recorded = made(EagerEngine, Net(), said, config), made(GraphEngine, Net(), said, config)
    assert losses(recorded) == losses(plain) and not said and recorded.graphs == 2


def test_dropped_ranks_and_layers_are_inputs_of_the_graph() -> None:
    config = LoRAConfig.of(rank=8, rank_dropout=0.5, module_dropout=0.3, learning_rate=0.01)
    found = []
    for kind in (EagerEngine, GraphEngine):
        net = Net()
        for layer in net.layers:
            layer.requires_grad_(False)
        targets = [Target(f"layers.{number}", net.layers[number]) for number in (0, 2)]
        adapters = make_adapters(targets, config.adapter, seed=1)
        flat = FlatParameters(adapters.values(), torch.device("cuda"), torch.float32)
        optimizer = make_optimizer(config.optimization, [{"params": [flat.values], "learning_rate": 0.01}])
        make_capturable(optimizer)
        step = Step(partial(batch_loss, net, EPS, config.objective), optimizer, config.optimization, flats=[flat])
        said: list[str] = []
        engine: Engine = (
            EagerEngine(step) if kind is EagerEngine else GraphEngine(step, said.append, (), adapters.values())
        )
        with attached(targets, adapters, host.PRODUCTS):
            for number in range(8):
                draw_dropout(adapters, config.adapter, 1, number, 0)
                engine.accumulate(batch(number))
                engine.update()
        found.append(flat.values.detach().clone())
        assert not said and (kind is EagerEngine or engine.graphs == 1)  # pyright: ignore
    torch.testing.assert_close(*found)


def when_recorded(error: BaseException):
    def trouble(x: torch.Tensor) -> None:
        if torch.cuda.is_current_stream_capturing():
            raise error

    return trouble


def test_what_cannot_be_recorded_goes_op_by_op_and_is_said_once() -> None:
    said: list[str] = []
    engine = made(GraphEngine, Net(when_recorded(KeyError("no"))), said)
    assert losses(engine) == losses(made(EagerEngine, Net(), said))
    assert len(said) == 1 and "no" in said[0]
    gc.collect()
    torch.cuda.synchronize()
    assert torch.randn(4, device="cuda").isfinite().all()


def test_a_stop_while_recording_is_a_stop(monkeypatch) -> None:
    monkeypatch.setattr(room, "_ABORTED", [])
    engine = made(GraphEngine, Net(when_recorded(host.Interrupted())), [])
    with pytest.raises(host.Interrupted):
        losses(engine)
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.randn(4, device="cuda").isfinite().all()


class Unused:
    """What waits for the GPU when it goes, and goes only when garbage is collected."""

    def __init__(self) -> None:
        self.own = self
        weakref.finalize(self, torch.cuda.Stream().synchronize).atexit = False


def test_what_nobody_uses_breaks_no_recording() -> None:
    def collects(x: torch.Tensor) -> None:
        if not torch.cuda.is_current_stream_capturing():
            Unused()
        assert len([[] for _ in range(10_000)]) == 10_000  # more than the collector wakes up for

    said: list[str] = []
    engine = made(GraphEngine, Net(collects), said)
    assert losses(engine) == losses(made(EagerEngine, Net(), said)) and not said and engine.graphs == 2


def test_memory_goes_back_when_graphs_go() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    held = []  # the first time libraries take memory for good
    for _ in range(4):
        engine = made(GraphEngine, Net(), [])
        losses(engine)
        engine.release()
        del engine
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_reserved())  # of this process: others may use the GPU too
    assert held[-1] <= held[0] + 2**22
