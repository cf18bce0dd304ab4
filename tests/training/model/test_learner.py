"""What learns: how it is placed, what goes together in it, and the state that it is kept as."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters.flat import ALIGNMENT
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.learning.engine import EagerEngine
from lora_kiln.training.learning.fitting import Placement
from lora_kiln.training.model.builder import Builder, about_precision
from lora_kiln.training.model.learner import Learner
from lora_kiln.training.model.networks import Setup

import models
from gradients import conditioning

ASKED, SPARING = Placement(False, 2), Placement(True, 2)


@pytest.fixture(autouse=True)
def training() -> Iterator[None]:
    with host.training_mode():
        yield


class Workshop:
    """Builds learners for a small SDXL, and makes their passes."""

    def __init__(self, **values: Any):
        self.small = models.sdxl()
        values = {"rank": 4, "alpha": 4.0, "batch_size": 2, "learning_rate": 1e-2, "seed": 1, **values}
        config = LoRAConfig.of(**values)
        self.said: list[str] = []
        setup = Setup(
            model=self.small.model,
            clip=self.small.clip,
            config=config,
            family=host.family(self.small.model),
            names=host.layer_names(self.small.model, self.small.clip),
            note=self.said.append,
        )
        self.builder = Builder(setup, {}, 1)
        self.stack = ExitStack()
        self.passes: list[Placement] = []

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def backward(self, learner: Learner, seed: int = 0) -> None:
        x = models.random_latents(self.small.model, 2, seed=seed)
        cond = host.batch_conds(learner.networks.model, [conditioning(self.small)] * 2, x)
        learner.predict(x, torch.tensor([3.0, 2.0]), cond).square().mean().backward()

    def try_out(self, learner: Learner, placement: Placement) -> None:
        self.passes.append(placement)
        self.backward(learner)
        learner.engine.step.reset()

    def fitted(self, *placements: Placement, try_out: Callable[..., None] | None = None) -> Learner:
        """Of the first placement that fits."""
        return self.builder._first_that_fits(placements, try_out or self.try_out, self.stack)[1]


# ---------------------------------------------------------------- what goes together


def test_what_reads_the_same_goes_together_once_it_was_tried_out() -> None:
    with Workshop() as shop:
        learner = shop.fitted(ASKED)
        assert shop.passes == [ASKED, ASKED] and not shop.said
        of_one = [[type(each.layer) for each in shared.members] for shared in learner.networks.shared]
        assert of_one and max(map(len, of_one)) > 3
        assert all(each.watch is None for each in learner.networks.forwards.values())


@pytest.mark.parametrize(
    ("placement", "values"), [(ASKED, {"deterministic": True}), (Placement(True, 2, resident=0.5), {})]
)
def test_where_bits_or_memory_matter_all_go_one_by_one(placement: Placement, values: dict[str, Any]) -> None:
    with Workshop(**values) as shop:
        assert not shop.fitted(placement).networks.shared and len(shop.passes) == 1


def test_what_is_checkpointed_goes_together_within_a_block_only() -> None:
    with Workshop() as shop:
        networks = shop.fitted(SPARING).networks
        names = {each: key.split(".transformer_blocks")[0] for key, each in networks.forwards.items()}
        assert networks.shared
        assert all(len({names[each] for each in shared.members}) == 1 for shared in networks.shared)


def test_without_memory_for_it_they_go_one_by_one_and_it_is_said() -> None:
    with Workshop() as shop:

        def try_out(learner: Learner, placement: Placement) -> None:
            shop.try_out(learner, placement)
            if len(shop.passes) == 2:
                raise RuntimeError("CUDA error: out of memory")

        learner = shop.fitted(ASKED, SPARING, try_out=try_out)
        assert shop.passes == [ASKED] * 3  # built anew: memory with gaps would not do
        assert not learner.networks.shared and not any(each.shared for each in learner.networks.forwards.values())
        assert len({each.layer.weight.untyped_storage().data_ptr() for each in learner.networks.forwards.values()}) > 50
        assert len(shop.said) == 1 and "one by one" in shop.said[0]
        shop.backward(learner)
        assert learner.flats[0].values.grad is not None and learner.flats[0].values.grad.any()


@pytest.mark.gpu
def test_a_model_with_code_of_other_nodes_is_not_recorded_and_that_is_said_once() -> None:
    """Such code may branch and draw in Python, which a recorded graph would repeat as it was."""
    with Workshop(cuda_graphs=True) as shop:
        shop.small.model.set_model_input_block_patch(lambda h, options: h)
        engine: Any = shop.fitted(ASKED, try_out=lambda learner, placement: None).engine
        assert type(engine.engine) is EagerEngine
        assert len(shop.said) == 1 and "code of other nodes (test_a_model_with_code" in shop.said[0]


def test_a_pass_that_breaks_off_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workshop() as shop:
        learner = shop.fitted(ASKED)

        shared = learner.networks.shared[0]

        def predict(*_: Any) -> None:
            member = shared.members[0]
            assert shared.output(member, torch.randn(2, 3, member.layer.in_features)) is not None
            raise torch.OutOfMemoryError("full")

        monkeypatch.setattr(host, "predict", predict)
        with pytest.raises(torch.OutOfMemoryError):
            learner.predict(torch.zeros(1), torch.zeros(1), None)
        assert not shared._outputs and shared._read is None


# ---------------------------------------------------------------- placing


def test_what_did_not_fit_is_gone_before_the_next_is_built() -> None:
    with Workshop() as shop:
        first: list[weakref.ref[torch.Tensor]] = []
        alive: list[int] = []

        def try_out(learner: Learner, placement: Placement) -> None:
            if first:
                gc.collect()
                alive.append(sum(each() is not None for each in first))
            shop.try_out(learner, placement)
            if placement == ASKED:
                first.extend(map(weakref.ref, learner.networks.model.parameters()))
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

        learner = shop.fitted(ASKED, SPARING, try_out=try_out)
        assert shop.passes == [ASKED, SPARING, SPARING] and alive and not any(alive) and learner.networks.shared


def test_a_twin_goes_when_its_run_ends_though_its_layers_know_each_other() -> None:
    with Workshop() as shop:
        learner = shop.fitted(ASKED)
        assert learner.networks.shared
        shop.backward(learner)
        weights = list(map(weakref.ref, learner.networks.model.parameters()))
        layers = [weakref.ref(each.layer) for each in learner.networks.forwards.values()]
        gc.collect()
        gc.disable()
        try:
            shop.stack.close()
            del learner
            assert not any(each() for each in layers) and all(each() is None for each in weights)
        finally:
            gc.enable()


@pytest.mark.parametrize(
    ("device", "fit_memory", "times"), [("mps", True, 1), ("xpu", True, 1), ("mps", False, 0), ("cpu", True, 0)]
)
def test_a_gpu_on_which_nothing_is_fitted_is_told_what_to_set(device, fit_memory, times, monkeypatch) -> None:
    monkeypatch.setattr(Builder, "_placed", lambda *_: None)
    with Workshop(fit_memory=fit_memory) as shop:
        vars(shop.builder.setup)["device"] = torch.device(device)
        shop.builder.fitted(shop.try_out, shop.stack)
        assert len(shop.said) == times
        assert all(f"fit_memory does nothing on {device}" in note for note in shop.said)


def test_where_nothing_fits_the_last_word_is_memory() -> None:
    with Workshop() as shop:

        def try_out(learner: Learner, placement: Placement) -> None:
            raise torch.OutOfMemoryError(f"{placement.checkpointing}")

        with pytest.raises(torch.OutOfMemoryError, match="True"):
            shop.fitted(ASKED, SPARING, try_out=try_out)


# ---------------------------------------------------------------- kept


def learned(learner: Learner, shop: Workshop, steps: int) -> None:
    for step in range(steps):
        shop.backward(learner, seed=step)
        learner.engine.update()


def test_memory_that_runs_out_while_a_state_is_loaded_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    with Workshop() as shop:
        learner = shop.fitted(ASKED)
        learned(learner, shop, 1)
        tensors, plain = learner.state()

        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError("full")

        monkeypatch.setattr(learner.optimizer, "load_state_dict", full)
        with pytest.raises(torch.OutOfMemoryError):
            learner.load(tensors, plain, same_pictures=True)


@pytest.mark.parametrize("values", [{}, {"ema_decay": 0.9}, {"optimizer": "lion", "ema_decay": 0.9}])
def test_a_state_brings_back_all_that_changes(values: dict[str, Any]) -> None:
    with Workshop(**values) as shop:
        learner = shop.fitted(ASKED)
        learned(learner, shop, 2)
        tensors, plain = learner.state()
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        learned(learner, shop, 1)
        expected = learner.flats[0].values.detach().clone()
        learned(learner, shop, 2)
        learner.load(tensors, plain, same_pictures=True)
        again, _ = learner.state()
        assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
        shop.backward(learner, seed=0)
        learner.engine.step.reset()
        learned(learner, shop, 1)
        torch.testing.assert_close(learner.flats[0].values.detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_has_the_adapters_in_their_order_whatever_lies_side_by_side() -> None:
    """As checkpoints always had it, so that earlier ones can be read."""
    with Workshop(ema_decay=0.9) as shop:
        learner = shop.fitted(ASKED)
        learned(learner, shop, 1)
        tensors, _ = learner.state()
        assert {"values.0", "ema.0", "optimizer.state.0.exp_avg"} <= tensors.keys()
        start = 0
        for adapter in learner.networks.adapters.values():
            for parameter in (adapter.down, adapter.up):
                found = tensors["values.0"][start : start + parameter.numel()]
                assert torch.equal(found, parameter.detach().flatten())
                start += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        assert start == len(tensors["values.0"]) == len(tensors["ema.0"])
        flat = learner.flats[0]
        assert not torch.equal(flat.values, tensors["values.0"])
        assert torch.equal(flat.as_laid(tensors["values.0"]), flat.values)


@pytest.mark.parametrize("name", ["lion", "schedule_free", "prodigy", "adafactor"])
def test_a_checkpoint_with_a_state_for_each_parameter_goes_on(name: str) -> None:
    """As earlier versions made them, whose optimizers and averages held the adapters' parameters themselves."""
    values: dict[str, Any] = {"optimizer": name, "scheduler": "constant"}
    values |= {} if name == "schedule_free" else {"ema_decay": 0.9}
    with Workshop(**values | ({"learning_rate": 1.0} if name == "prodigy" else {})) as shop:
        learner = shop.fitted(ASKED)
        learned(learner, shop, 2)
        tensors, plain = learner.state()
        (flat,) = learner.flats
        apart: dict[str, torch.Tensor] = {}
        for key, tensor in tensors.items():
            if key.startswith(("ema.0", "optimizer.state.0.")) and tensor.shape == flat.values.shape:
                start = 0
                for number, each in enumerate(flat.parameters):
                    part = tensor[start : start + each.numel()].view(each.shape)
                    apart[key.replace(".0", f".{number}", 1)] = part.clone()
                    start += -(-each.numel() // ALIGNMENT) * ALIGNMENT
            elif key == "ema.1":
                apart[f"ema.{len(flat.parameters)}"] = tensor.clone()
            else:
                apart[key] = tensor.clone()
        if name != "adafactor":
            plain["optimizer"]["state"] = {str(number): {} for number in range(len(flat.parameters))}
        expected = {key: tensor.clone() for key, tensor in tensors.items()}
        learned(learner, shop, 1)
        learner.load(apart, plain, same_pictures=True)
        again, _ = learner.state()
        assert again.keys() == expected.keys()
        assert all(torch.equal(again[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("precision", "has_bf16", "has_fp16", "takes_fp16", "said"),
    [
        ("auto", True, True, True, ""),
        ("fp16", True, True, True, ""),
        ("fp16", False, True, True, ""),
        ("fp32", False, True, True, ""),
        ("auto", False, False, True, ""),
        ("auto", False, True, False, ""),
        ("auto", False, True, True, "has no bf16.*fp16 takes half the memory"),
        ("bf16", False, True, True, "imitates bf16.*fp16"),
        ("bf16", False, True, False, "imitates bf16.*fp32"),
        ("bf16", False, False, True, "imitates bf16.*fp32"),
        ("fp16", False, False, True, "wrongly.*set precision to fp32"),
    ],
)
def test_fp16_is_proposed_where_it_helps(
    precision: str, has_bf16: bool, has_fp16: bool, takes_fp16: bool, said: str
) -> None:
    words = about_precision(precision, has_bf16, has_fp16, takes_fp16)
    assert re.search(said, words) if said else words == ""
