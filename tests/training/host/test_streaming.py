"""Weights that wait in RAM give the gradients of weights that stay, in the memory that was asked for."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.host import streaming
from lora_kiln.training.host.blocks import repeated_blocks
from lora_kiln.training.host.streaming import streamable
from torch.multiprocessing.reductions import StorageWeakRef

import gradients
import models
from gradients import FAMILIES, Probe, all_equal


@pytest.fixture(autouse=True)
def training():
    with host.training_mode():
        yield


def streamed_probe(small: models.Small, sigma: float, resident_bytes: int = 0, dtype=torch.float32, **values) -> Probe:
    twin = host.trainable_twin(small.model, dtype, in_ram=True)
    facts = host.stream_blocks(twin, resident_bytes)
    probe = Probe(small, sigma, twin, **values)
    probe.facts = facts
    return probe


def resident_probe(small: models.Small, sigma: float, dtype=torch.float32, **values) -> Probe:
    twin = host.trainable_twin(small.model, dtype)
    host.checkpoint_blocks(twin)
    return Probe(small, sigma, twin, **values)


class Device:
    """Counts the weights' bytes on the device, those that only autograd holds included."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.taken: list[tuple[StorageWeakRef, int]] = []
        self.most = 0
        take = streaming.memory_for

        def counted(size: int, device: torch.device) -> torch.Tensor:
            memory = take(size, device)
            self.taken.append((StorageWeakRef(memory.untyped_storage()), memory.nbytes))
            self.most = max(self.most, self.now)
            return memory

        monkeypatch.setattr(streaming, "memory_for", counted)

    @property
    def now(self) -> int:
        self.taken = [(storage, size) for storage, size in self.taken if not storage.expired()]
        return sum(size for _, size in self.taken)


def block_sizes(small: models.Small) -> list[int]:
    """Bytes of each block's weights, each tensor rounded up to where the next may begin."""
    return [
        sum(-(-module._parameters[name].nbytes // 256) * 256 for module, name in streamable(block))
        for _, block in repeated_blocks(small.model.model)
    ]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("share", [0.0, 0.8])
def test_gradients_are_those_of_the_resident_twin(name, share):
    make, sigma = FAMILIES[name]
    small = make()
    room = int(share * sum(block_sizes(small)))
    streamed, resident = streamed_probe(small, sigma, room), resident_probe(small, sigma)
    assert streamed.facts.streamed
    expected = resident.gradients()
    for _ in range(3):  # the first pass guesses what comes next, later ones know
        assert all_equal(streamed.gradients(), expected)
    with host.sampling_mode():
        assert torch.equal(streamed.value(), resident.value())
    assert all_equal(streamed.gradients(), expected)


@pytest.mark.parametrize("name", models.TRANSFORMERS)
@pytest.mark.parametrize("precision", ["as loaded", "fp8"])
def test_every_family_of_transformers_can_be_streamed(name, precision):
    small, sigma = models.Small(models.TRANSFORMERS[name](), None, None), 3.0 if name == "pixart" else 0.6
    resident = host.trainable_twin(small.model, torch.float32, precision)
    host.checkpoint_blocks(resident)
    streamed = host.trainable_twin(small.model, torch.float32, precision, in_ram=True)
    facts = host.stream_blocks(streamed, 0)
    assert facts.streamed and facts.resident_bytes == 0
    expected = Probe(small, sigma, resident).gradients()
    probe = Probe(small, sigma, streamed)
    for _ in range(2):
        assert all_equal(probe.gradients(), expected)


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "oft"])
def test_every_kind_of_adapter_sees_the_weights_of_its_block(kind):
    make, sigma = FAMILIES["sdxl"]
    small = make()
    streamed, resident = streamed_probe(small, sigma, kind=kind), resident_probe(small, sigma, kind=kind)
    assert all_equal(streamed.gradients(), resident.gradients())


@pytest.mark.parametrize("name", FAMILIES)
def test_two_streamed_blocks_at_most_are_on_the_device(name, monkeypatch):
    device = Device(monkeypatch)
    make, sigma = FAMILIES[name]
    small = make()
    probe = streamed_probe(small, sigma)
    sizes = block_sizes(small)
    assert probe.facts.resident_bytes == 0
    assert probe.facts.streamed_bytes == sum(sizes)
    for _ in range(3):
        probe.gradients()
    with host.sampling_mode():
        probe.value()
    assert 0 < device.most <= 2 * max(sizes)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_what_fits_stays(name, share, monkeypatch):
    device = Device(monkeypatch)
    make, sigma = FAMILIES[name]
    small = make()
    sizes = block_sizes(small)
    room = max(int(share * sum(sizes)), 2 * max(sizes))
    probe = streamed_probe(small, sigma, room)
    for _ in range(2):
        probe.gradients()
    assert probe.facts.resident_bytes + probe.facts.streamed_bytes == sum(sizes)
    assert probe.facts.resident_bytes + device.most <= room


def test_nothing_is_streamed_where_all_fits(monkeypatch):
    device = Device(monkeypatch)
    make, sigma = FAMILIES["flux"]
    small = make()
    probe, resident = streamed_probe(small, sigma, sum(block_sizes(small))), resident_probe(small, sigma)
    assert probe.facts.streamed == ()
    assert all_equal(probe.gradients(), resident.gradients())
    assert device.most == 0


def test_what_is_streamed_lies_evenly_among_what_stays():
    assert streaming.spread([1] * 8, 8) == [False] * 8
    assert streaming.spread([1] * 8, 2) == streaming.spread([1] * 8, 0) == [True] * 8
    assert streaming.spread([1] * 8, 6) == [True, False] * 4
    assert streaming.spread([1] * 9, 5) == [True, True, False] * 3
    assert streaming.spread([0, 4, 4], 0) == [False, True, True]


def test_blocks_are_sent_ahead_in_the_order_of_use():
    small, sigma = models.flux(), 0.6
    probe = streamed_probe(small, sigma)
    stream = next(iter(stream_of(probe.twin)))
    events: list[tuple[str, int]] = []
    send, drop, present = stream._send, stream._drop, stream._arrived
    stream._send = lambda number: (events.append(("send", number)), send(number))[1]
    stream._drop = lambda number: (events.append(("drop", number)), drop(number))[1]
    stream._arrived = lambda number: (events.append(("use", number)), present(number))[1]
    probe.gradients()
    forward = [("send", 0), ("send", 1), ("use", 0), ("drop", 0)]
    forward += [("send", 2), ("use", 1), ("drop", 1), ("send", 3), ("use", 2), ("drop", 2), ("use", 3)]
    backward = [("send", 2), ("use", 3), ("drop", 3), ("send", 1), ("use", 2), ("drop", 2)]
    backward += [("send", 0), ("use", 1), ("drop", 1), ("use", 0)]
    assert events == forward + backward
    events.clear()
    probe.gradients()  # once more: the first block has stayed where it was
    events.clear()
    probe.gradients()
    assert events == [("send", 1), *forward[2:], *backward]


def waiting(twin: Any) -> set[int]:
    """Where the blocks' weights lie."""
    blocks = [block for _, block in repeated_blocks(twin)]
    return {module._parameters[name].data_ptr() for block in blocks for module, name in streamable(block)}


def stream_of(twin: Any) -> list[Any]:
    around = (block.forward.make_context for _, block in repeated_blocks(twin))
    return list({id(each.func.__self__): each.func.__self__ for each in around if hasattr(each, "func")}.values())


def test_weights_in_ram_are_the_models_own():
    small = models.flux()
    theirs = {tensor.data_ptr() for tensor in small.model.model.state_dict().values()}
    twin = host.trainable_twin(small.model, torch.float32, in_ram=True)
    host.stream_blocks(twin, 0)
    assert waiting(twin) and waiting(twin) <= theirs
    twin = host.trainable_twin(small.model, torch.bfloat16, in_ram=True)  # of another number format they are a copy
    assert waiting(twin) and not waiting(twin) & theirs


def test_a_patched_weight_is_streamed_with_its_patch():
    small, sigma = models.sd15(), 3.0
    key = next(key for key in host.layer_names(small.model) if key.endswith("attn1.to_q.weight"))
    weight = small.model.model.state_dict()[key]
    patched = small.model.clone()
    patched.add_patches({key: ("diff", (torch.ones_like(weight),))}, 0.1)
    small = models.Small(patched, small.clip, small.vae)
    assert all_equal(streamed_probe(small, sigma).gradients(), resident_probe(small, sigma).gradients())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_is_left_as_it_was(name):
    make, sigma = FAMILIES[name]
    small = make()
    before = models.state(small)
    probe = streamed_probe(small, sigma, kind="dora")
    probe.gradients()
    after = models.state(small)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert models.hooks(small.model.model) == 0
    # and where the twin's modules have their weights again, these are still in RAM
    assert all(not weight.requires_grad for weight in probe.twin.parameters())


def test_the_twin_goes_with_its_last_reference(monkeypatch):
    device = Device(monkeypatch)
    small, sigma = models.sdxl(), 3.0
    probe = streamed_probe(small, sigma)
    probe.gradients()
    gone = weakref.ref(probe.twin), weakref.ref(stream_of(probe.twin)[0])
    assert device.now > 0  # the first block waits for the next step
    gc.disable()
    try:
        del probe
        assert [ref() for ref in gone] == [None, None]
        assert device.now == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("at", ["forward", "backward"])
def test_a_run_that_stops_in_the_middle_leaves_nothing(at, monkeypatch):
    device = Device(monkeypatch)
    small, sigma = models.flux(), 0.6
    before = models.state(small)
    probe = streamed_probe(small, sigma)
    expected = probe.gradients()
    calls = 0

    def stop(module, args):
        nonlocal calls
        calls += 1
        if calls == (1 if at == "forward" else 2):
            raise comfy.model_management.InterruptProcessingException()

    handle = probe.twin.diffusion_model.single_blocks[0].linear1.register_forward_pre_hook(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        probe.gradients()
    handle.remove()
    assert waiting(probe.twin) <= {tensor.data_ptr() for tensor in small.model.model.state_dict().values()}
    assert all_equal(probe.gradients(), expected)  # it could even go on
    after = models.state(small)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    del probe
    gc.collect()
    assert device.now == 0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("precision", ["as loaded", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_the_weights_take_is_known_beforehand(name, precision, dtype):
    small = FAMILIES[name][0]()
    twin = host.trainable_twin(small.model, dtype, precision)
    taken = sum(parameter.nbytes for parameter in twin.parameters())
    assert host.weight_bytes(small.model, dtype, precision) == taken


def test_adapters_are_made_on_weights_in_ram():
    """DoRA's start is the norms of the weight, which must be readable where it waits."""
    small = models.sd15()
    twin = host.trainable_twin(small.model, torch.float32, in_ram=True)
    host.stream_blocks(twin, 0)
    probe = gradients.Probe(small, 3.0, twin, kind="dora")
    assert all(torch.isfinite(parameter).all() for parameter in probe.parameters)
