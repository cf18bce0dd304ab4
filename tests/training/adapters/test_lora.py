"""LoRA: its start, and the forms in which files hold it."""

import math

import comfy.lora
import pytest
import torch
from lora_kiln.training.adapters import LoRA, adapter_from_tensors, init_lora
from lora_kiln.training.adapters.base import largest_divisor
from torch import nn

RANK, SCALE = 3, 0.7


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def learned(shape, generator: torch.Generator) -> LoRA:
    down, up = init_lora(shape, RANK, generator)
    return LoRA(down, torch.randn(up.shape, generator=generator), SCALE * RANK)


@pytest.mark.parametrize("shape", [(12, 20), (6, 4, 3), (6, 4, 1, 1), (6, 4, 3, 5), (6, 4, 1, 3, 3)])
def test_the_difference_is_the_product_of_the_factors(shape, generator: torch.Generator) -> None:
    adapter = learned(shape, generator)
    expected = torch.einsum("or,ri...->oi...", adapter.up.flatten(1), adapter.down) * SCALE
    assert expected.shape == shape
    torch.testing.assert_close(adapter.difference(), expected)


@pytest.mark.parametrize("shape", [(40, 300), (40, 30, 3, 3)])
def test_down_is_drawn_as_kaiming_uniform_draws_it(shape, generator: torch.Generator) -> None:
    down, _ = init_lora(shape, 64, generator)
    reference = torch.empty_like(down)
    torch.nn.init.kaiming_uniform_(reference, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(down, reference)


def test_the_factors_have_the_rank(generator: torch.Generator) -> None:
    down, up = init_lora((6, 4, 3, 3), RANK, generator)
    assert down.shape == (RANK, 4, 3, 3) and up.shape == (6, RANK, 1, 1) and not up.any()


@pytest.mark.parametrize(
    ("up", "down"),
    [
        ("lora_up.weight", "lora_down.weight"),
        ("lora_B.weight", "lora_A.weight"),
        ("lora_B.default.weight", "lora_A.default.weight"),
        ("lora_B", "lora_A"),
        ("lora.up.weight", "lora.down.weight"),
        ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ],
)
@pytest.mark.parametrize("alpha", [None, 1.5])
def test_every_name_the_host_knows_is_read_as_the_host_reads_it(up: str, down: str, alpha, generator) -> None:
    tensors = {up: torch.randn(6, RANK, generator=generator), down: torch.randn(RANK, 4, generator=generator)}
    tensors |= {} if alpha is None else {"alpha": torch.tensor(alpha)}
    adapter = adapter_from_tensors(tensors)
    assert adapter is not None and adapter.scale == (1.0 if alpha is None else alpha / RANK)
    named = {f"layer.{name}": tensor for name, tensor in tensors.items()}
    patch = comfy.lora.load_lora(named, {"layer": "layer.weight"})["layer.weight"]
    merged = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], torch.zeros(6, 4), "layer.weight")
    torch.testing.assert_close(adapter.difference(), merged)


@pytest.mark.parametrize(
    ("layer", "up", "down", "x"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (6, RANK), (RANK, 36), (2, 4, 5, 5)),
        (nn.Linear(4, 6), (6, RANK, 1, 1), (RANK, 4, 1, 1), (2, 4)),
        (nn.Conv2d(4, 6, 1), (6, RANK), (RANK, 4), (2, 4, 5, 5)),
    ],
    ids=["flat factors of a convolution", "1x1 factors of a linear layer", "flat factors of a 1x1 convolution"],
)
def test_factors_of_another_shape_fit_the_layer(layer, up, down, x, generator: torch.Generator) -> None:
    tensors = {"lora_up.weight": torch.randn(up, generator=generator)}
    tensors["lora_down.weight"] = torch.randn(down, generator=generator)
    adapter, x = adapter_from_tensors(tensors), torch.randn(x, generator=generator)
    assert isinstance(adapter, LoRA) and adapter.tensors()["lora_down.weight"].shape == down
    with torch.no_grad():
        output, merged = adapter(layer, layer, x), adapter.merged(layer.weight)
        layer.weight.copy_(merged)
        torch.testing.assert_close(output, layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("number", "limit", "expected"),
    [(128, 128, 8), (128, 4, 4), (360, 16, 15), (250, 250, 10), (127, 64, 1), (36, 6, 6), (36, 5, 4), (7, 0.5, 1)],
)
def test_the_largest_divisor_is_below_the_limit_and_the_root(number: int, limit: float, expected: int) -> None:
    assert largest_divisor(number, limit) == expected
