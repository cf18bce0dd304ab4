"""What streaming and fp8 do to a GPU's memory and gradients; left out, and said so, where there is none."""

from __future__ import annotations

import gc

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.host.blocks import repeated_blocks
from lora_kiln.training.host.streaming import streamable

import models
from gradients import FAMILIES, Probe, distance

pytestmark = pytest.mark.gpu
NEAR = 1e-3
"""Far above rounding, far below what a wrong weight does."""
SLACK = 2**26
"""bytes; libraries' own memory, which stays once it is taken"""
WIDE = {
    **models.FLUX, "image_model": "flux", "guidance_embed": True, "hidden_size": 1024, "num_heads": 16,
    "axes_dim": [16, 24, 24], "depth": 4, "depth_single_blocks": 8,
}  # fmt: skip
"""Flux, wide enough that weights are most of the memory: about 1 GiB in float32."""


@pytest.fixture(autouse=True)
def training(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # or float32 would be of ten bits
    with host.training_mode():
        yield


@pytest.fixture
def wide_flux(monkeypatch) -> models.Small:
    monkeypatch.setattr(models, "FLUX", WIDE)
    return models.flux()


def resident(small: models.Small, sigma: float, dtype: torch.dtype, precision: str = "as loaded", kind="lora") -> Probe:
    twin = host.trainable_twin(small.model, dtype, precision)
    host.checkpoint_blocks(twin)
    return Probe(small, sigma, twin, kind)


def streamed(
    small: models.Small, sigma: float, dtype: torch.dtype, room: int = 0, precision: str = "as loaded", kind="lora"
) -> Probe:
    twin = host.trainable_twin(small.model, dtype, precision, in_ram=True)
    facts = host.stream_blocks(twin, room)
    assert facts.streamed and facts.is_pinned
    return Probe(small, sigma, twin, kind)


def peak(probe: Probe) -> int:
    """Most bytes in use, over two steps."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        probe.gradients()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("precision", ["as loaded", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streamed_gradients_are_those_of_resident_weights(name, kind, precision, dtype):
    make, sigma = FAMILIES[name]
    small = make()
    probe = streamed(small, sigma, dtype, 0, precision, kind)
    expected = resident(small, sigma, dtype, precision, kind).gradients()
    for _ in range(3):
        assert distance(probe.gradients(), expected) < (1e-3 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_transfers_do_not_race_with_computing(share, wide_flux):
    """Large weights, many passes, nothing awaited in between: a place taken too early would show in the numbers."""
    sizes = [
        sum(module._parameters[name].nbytes for module, name in streamable(block))
        for _, block in repeated_blocks(wide_flux.model.model)
    ]
    probe = streamed(wide_flux, 0.6, torch.float32, int(share * sum(sizes)))
    expected = resident(wide_flux, 0.6, torch.float32).gradients()
    passes = [probe.gradients() for _ in range(6)]
    assert max(distance(each, expected) for each in passes) < NEAR
    with host.sampling_mode():
        first, again = probe.value(), probe.value()
    assert torch.allclose(first, again, rtol=NEAR)
    assert distance(probe.gradients(), expected) < NEAR
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # a step on another stream than the one before
        on_side = probe.gradients()
    torch.cuda.current_stream().wait_stream(side)
    assert distance(on_side, expected) < NEAR
    assert distance(probe.gradients(), expected) < NEAR


def test_streaming_takes_the_memory_of_two_blocks(wide_flux):
    probe = resident(wide_flux, 0.6, torch.float32)
    whole = peak(probe)
    del probe
    gc.collect()
    before = torch.cuda.memory_allocated()
    probe = streamed(wide_flux, 0.6, torch.float32)
    sizes = [
        sum(module._parameters[name].nbytes for module, name in streamable(block))
        for _, block in repeated_blocks(probe.twin)
    ]
    assert peak(probe) < whole - sum(sizes) + 3 * max(sizes)
    del probe
    gc.collect()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + SLACK


def test_fp8_takes_half_the_memory_of_bf16(wide_flux):
    peaks = []
    for precision in ("as loaded", "fp8"):
        probe = resident(wide_flux, 0.6, torch.bfloat16, precision)
        peaks.append(peak(probe))
        del probe
        gc.collect()
    weights = sum(parameter.numel() for parameter in wide_flux.model.model.parameters())
    assert peaks[0] - peaks[1] > 0.7 * weights  # of two bytes a weight, nearly one is saved


def test_a_run_that_stops_in_the_middle_gives_its_memory_back(wide_flux):
    gc.collect()
    before = torch.cuda.memory_allocated()
    probe = streamed(wide_flux, 0.6, torch.bfloat16)

    def stop(module, args):
        raise RuntimeError("stop")

    probe.twin.diffusion_model.single_blocks[3].linear1.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        probe.gradients()
    del probe
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + SLACK


def test_a_captured_graph_refuses_streamed_weights():
    small = models.flux()
    probe = streamed(small, 0.6, torch.float32)
    _, block = next(iter(repeated_blocks(probe.twin)))
    refused = pytest.raises(RuntimeError, match="run the steps eagerly")
    with refused, torch.cuda.graph(torch.cuda.CUDAGraph()), block.forward.make_context():
        pass
    torch.cuda.synchronize()
