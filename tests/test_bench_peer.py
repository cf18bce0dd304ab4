"""The diffusers peer of `bench speed`: it is the same network, trained, and its failures are answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import diffusers_peer, models
from bench.models import MODELS
from bench.runs import TOO_SLOW, Child

META = torch.device("meta")


class NoNoise:
    """Stands in for the scheduler, which computes on values."""

    def add_noise(self, x_0: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return x_0


@pytest.mark.parametrize("name", MODELS)
def test_its_network_is_the_hosts_in_parameters_and_arithmetic(name: str):
    model = MODELS[name]
    network = diffusers_peer.new_network(model, META, torch.bfloat16)
    assert sum(parameter.numel() for parameter in network.parameters()) == models.parameters(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        diffusers_peer.batch_loss(network, model, NoNoise(), 2, META, torch.bfloat16)
    assert counter.get_total_flops() == 2 * models.forward_flops(model)


def test_it_trains_the_attention_projections_alone(monkeypatch: pytest.MonkeyPatch):
    trained: list[str] = []
    real = torch.optim.AdamW

    def optimizer(parameters: list[torch.nn.Parameter], *args: float) -> torch.optim.Optimizer:
        trained.extend(str(tuple(parameter.shape)) for parameter in parameters)
        return real(parameters, *args)

    monkeypatch.setattr(torch.optim, "AdamW", optimizer)
    question = {"model": "kit", "batch": 1, "checkpointing": True, "compile": "", "steps": 2, "skip": 1, "repeats": 2}
    found = diffusers_peer.answer(question)
    assert len(found["seconds_per_step"]) == 2 and found["adapters"] == "float32"
    assert len(trained) == 4 * 2 * 4 * 2  # blocks, attentions of each, projections of each, factors of each


def test_a_failure_is_an_answer():
    found = diffusers_peer.answer({"model": "kit", "batch": 0, "checkpointing": False, "compile": "no such thing"})
    assert "KeyError" in found["failed"]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A child that echoes, sleeps or dies."""
    (tmp_path / "echo_child.py").write_text(
        "import json, sys, time\n"
        "for line in sys.stdin:\n"
        "    question = json.loads(line)\n"
        "    print('noise of a library')\n"
        "    time.sleep(question.get('sleep', 0))\n"
        "    if question.get('die'): sys.exit('I die')\n"
        "    print('RESULT ' + json.dumps({'echo': question['n']}), flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child("echo_child", tmp_path / "log") as made:
        yield made


def test_a_child_answers_and_starts_anew_when_it_died_or_was_too_slow(child: Child):
    assert child.ask({"n": 1}, 20) == {"echo": 1}
    assert child.ask({"n": 2}, 20) == {"echo": 2}
    assert "I die" in child.ask({"n": 3, "die": True}, 20)["failed"]
    assert child.ask({"n": 4}, 20) == {"echo": 4}
    assert child.ask({"n": 5, "sleep": 60}, 1) == {"failed": TOO_SLOW}
    assert child.ask({"n": 6}, 20) == {"echo": 6}
    assert json.dumps(child.ask({"n": 7}, 20)) == '{"echo": 7}'
