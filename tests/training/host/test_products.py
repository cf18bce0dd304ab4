"""The products of frozen linear layers, with weights in fewer bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from lora_kiln.training import host
from lora_kiln.training.host.products import _Linear, fp8_matmul_obstacle, linear, linear_backward, rows_to_e4m3
from lora_kiln.training.host.quantise import dense, to_fp8
from lora_kiln.training.run.trainer import Trained

import models
from gradients import FAMILIES, Probe, all_equal, distance
from host import has_cuda
from training_runs import changed, run

DEVICE = torch.device("cuda" if has_cuda() else "cpu")


@pytest.fixture(autouse=True)
def training():
    with host.training_mode():
        yield


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_the_layers_gradient_is_that_of_the_dense_weight(shape, with_bias):
    weight = to_fp8(torch.randn(40, 64), torch.float64)
    bias = torch.randn(40, dtype=torch.float64) if with_bias else None
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _Linear.apply(x, weight, bias), (x,))
    assert torch.equal(_Linear.apply(x, weight, bias), F.linear(x, dense(weight, x.dtype), bias))


def test_only_the_quantised_weight_is_kept_for_the_backward_pass():
    kept: list[Any] = []
    weight = to_fp8(torch.randn(40, 64), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        _Linear.apply(torch.randn(3, 64, requires_grad=True), weight, torch.randn(40))
    assert [type(each) for each in kept] == [QuantizedTensor]
    assert kept[0]._qdata.nbytes == 40 * 64


# ---------------------------------------------------------------- multiplied in 8 bit


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Rows that differ in size by many orders of magnitude."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    sizes = torch.logspace(-6, 6, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (sizes * values).to(DEVICE, dtype)


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest distance of a row from the other's, against its norm."""
    ours, theirs = ours.double().flatten(0, -2), theirs.double().flatten(0, -2)
    return ((ours - theirs).norm(dim=1) / theirs.norm(dim=1)).max().item()


def test_rows_keep_their_own_scale():
    x, factors = drawn(7, 48), torch.exp2(torch.arange(48.0) % 5).to(DEVICE)
    for numbers, scale, exact in ((*rows_to_e4m3(x), x.float()), (*rows_to_e4m3(x, factors), x.float() * factors)):
        assert numbers.dtype == torch.float8_e4m3fn and scale.shape == (7, 1)
        error = (numbers.float() * scale - exact).abs()
        assert (error <= 1.001 * torch.maximum(exact.abs() / 16, scale / 1024)).all()
        assert (numbers.float().abs().amax(1) == 448).all()


def test_a_row_of_nothing_stays_nothing():
    numbers, scale = rows_to_e4m3(torch.zeros(2, 16, device=DEVICE))
    assert not numbers.float().any() and scale.isfinite().all()


def test_numbers_that_e4m3_holds_are_multiplied_exactly():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-7, 8, (8, 32), generator=generator).float() for _ in range(2))
    x[:, 0], weight[:, 0] = 7.0, 7.0  # so that every row has the same scale: a power of two of 7 / 448
    layer = to_fp8(weight.to(DEVICE), torch.float32, is_multiplied=True)
    assert torch.equal(linear(x.to(DEVICE), layer, None).cpu(), x @ weight.T)


@pytest.mark.parametrize("shape", [(5, 64), (2, 5, 64)])
@pytest.mark.parametrize("width", [48, 40])  # 40 is no multiple of 16: made dense there
def test_both_products_are_near_those_of_the_dense_weight(shape, width):
    weight = to_fp8(drawn(width, 64, seed=1), torch.bfloat16, is_multiplied=True)
    x, gradient = drawn(*shape, seed=2), drawn(*shape[:-1], width, seed=3)
    bias = torch.randn(width).to(DEVICE, torch.bfloat16)
    plain = dense(weight, torch.float32)
    assert apart(linear(x, weight, None), F.linear(x.float(), plain)) < 0.1
    assert apart(linear_backward(gradient, weight), gradient.float() @ plain) < 0.1
    torch.testing.assert_close(linear(x, weight, bias), linear(x, weight, None) + bias, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_near_those_of_products_in_full(name):
    make, sigma = FAMILIES[name]
    small = make()
    full, fast = (host.trainable_twin(small.model, torch.float32, base) for base in ("fp8", host.FP8_MATMUL))
    assert 0.0 < distance(Probe(small, sigma, fast).gradients(), Probe(small, sigma, full).gradients()) < 0.15


def test_it_is_streamed_to_the_same_bits():
    make, sigma = FAMILIES["flux"]
    small = make()
    resident = host.trainable_twin(small.model, torch.float32, host.FP8_MATMUL)
    host.checkpoint_blocks(resident)
    streamed = host.trainable_twin(small.model, torch.float32, host.FP8_MATMUL, in_ram=True)
    host.stream_blocks(streamed, 0)
    assert all_equal(Probe(small, sigma, streamed).gradients(), Probe(small, sigma, resident).gradients())


def trained(small: models.Small, base_precision: str, **values: Any) -> Trained:
    return run(changed(base_precision=base_precision, **values), small=small)


def test_a_run_with_fp8_matmul_is_near_one_without_and_says_what_it_did(folders):
    small = models.sdxl()
    before = models.state(small)
    exact, fast = trained(models.sdxl(), "as loaded"), trained(small, host.FP8_MATMUL)
    assert fast.losses != exact.losses
    assert fast.losses == pytest.approx(exact.losses, rel=0.05)
    assert "linear weights in fp8 matmul" in fast.report
    assert "8-bit products are computed from rounded numbers" in fast.report  # the run's fp32 has none anywhere
    assert all(torch.equal(value, before[key]) for key, value in models.state(small).items())


@pytest.mark.gpu
def test_the_gpus_own_8_bit_products_are_those_of_the_same_numbers():
    weight = to_fp8(drawn(64, 256, seed=1), torch.bfloat16, is_multiplied=True)
    x = drawn(32, 256, seed=2)
    assert not fp8_matmul_obstacle(DEVICE, x.dtype)
    numbers, scale = rows_to_e4m3(x)
    exact = (numbers.double() * scale) @ dense(weight, torch.float32).double().T
    assert apart(linear(x, weight, None), exact) < 0.01
