"""DoRA: the paper's column form, its detached norm, and layers in other number formats."""

import pytest
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from lora_kiln.training.adapters import DoRA, LoRA, adapter_from_tensors, init_lora, new_adapter
from lora_kiln.training.adapters.dora import column_norms
from torch import nn

RANK, ALPHA = 3, 1.5


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def learned(layer: nn.Module, generator: torch.Generator) -> DoRA:
    adapter = new_adapter("dora", layer, RANK, ALPHA, generator)
    assert isinstance(adapter, DoRA)
    for parameter in adapter.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return adapter


@pytest.mark.parametrize("shape", [(12, 20), (6, 4, 3), (6, 4, 3, 5), (6, 4, 1, 3, 3)])
def test_column_norms_are_those_of_the_sum(shape, generator: torch.Generator) -> None:
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    down, up = (factor.double() for factor in init_lora(shape, RANK, generator))
    up = torch.randn(up.shape, generator=generator, dtype=torch.float64)
    total = weight + LoRA(down, up, float(RANK)).difference().detach()
    expected = torch.linalg.vector_norm(total, dim=(0, *range(2, len(shape)))).reshape(1, -1, *[1] * (len(shape) - 2))
    torch.testing.assert_close(column_norms(weight, down, up), expected)


@pytest.mark.parametrize("layer", [nn.Linear(20, 12), nn.Conv2d(4, 6, 3)])
def test_the_merged_weight_has_the_learned_column_norms(layer: nn.Module, generator: torch.Generator) -> None:
    adapter = learned(layer, generator)
    merged = adapter.merged(layer.weight)
    norms = merged.transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, adapter.magnitude.flatten().abs(), rtol=1e-5, atol=1e-5)


def test_magnitudes_start_at_the_weights_column_norms(generator: torch.Generator) -> None:
    layer = nn.Linear(20, 12)
    adapter = new_adapter("dora", layer, RANK, ALPHA, generator)
    assert adapter.tensors()["dora_scale"].shape == (1, 20)
    torch.testing.assert_close(adapter.tensors()["dora_scale"][0], layer.weight.detach().norm(dim=0))


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(4, 5, 3, stride=2, padding=1)])
def test_gradients_are_those_with_the_norm_held_constant(layer: nn.Module, generator: torch.Generator) -> None:
    """Section 4.3 of the paper, against finite differences of the merged form."""
    layer = layer.double().requires_grad_(False)
    adapter = learned(layer, generator).double()
    is_linear = isinstance(layer, nn.Linear)
    x = torch.randn((3, 6) if is_linear else (2, 4, 6, 6), generator=generator, dtype=torch.float64)
    names = ("down", "up", "magnitude")
    start = {name: getattr(adapter, name).detach().clone() for name in names}
    norms = column_norms(layer.weight, start["down"], start["up"] * adapter.scale)

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        change = adapter.scale * (values["up"].flatten(1) @ values["down"].flatten(1)).reshape(layer.weight.shape)
        weight = values["magnitude"] / norms * (layer.weight + change)
        y = F.linear(x, weight, layer.bias) if is_linear else layer._conv_forward(x, weight, layer.bias)
        return (y**3).sum()

    (adapter(layer, layer, x) ** 3).sum().backward()
    for name in names:
        gradient = getattr(adapter, name).grad
        for index in range(0, gradient.numel(), 7):
            step = torch.zeros(gradient.numel(), dtype=torch.float64)
            step[index] = 1e-6
            step = step.reshape(gradient.shape)
            up, down = (loss({**start, name: start[name] + sign * step}) for sign in (1, -1))
            torch.testing.assert_close(gradient.flatten()[index], (up - down) / 2e-6, rtol=1e-5, atol=1e-6)


def test_a_layer_with_one_row_gets_lora(generator: torch.Generator) -> None:
    """The host would take a (1, in) magnitude for one of rows there."""
    assert type(new_adapter("dora", nn.Linear(20, 1), RANK, ALPHA, generator)) is LoRA


@pytest.mark.parametrize("layer", [nn.Linear(20, 12), nn.Linear(12, 12), nn.Conv2d(4, 6, 3)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_magnitudes_of_rows_are_applied_as_the_host_applies_them(layer, has_bias: bool, generator) -> None:
    import comfy.lora

    if not has_bias:
        layer.bias = None
    tensors = learned(layer, generator).tensors()
    tensors["dora_scale"] = torch.rand(layer.weight.shape[0], *(1 for _ in layer.weight.shape[1:]), generator=generator)
    adapter = adapter_from_tensors(tensors)
    assert isinstance(adapter, DoRA)
    patch = comfy.lora.load_lora({f"l.{name}": t for name, t in tensors.items()}, {"l": "l.weight"})["l.weight"]
    weight = layer.weight.detach()
    merged = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], weight.clone(), "l.weight")
    x = torch.randn((3, weight.shape[1], *([6, 6] if weight.dim() == 4 else [])), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(adapter.merged(weight), merged)
        output = adapter(layer, layer, x)
        layer.weight.copy_(merged)
        torch.testing.assert_close(output, layer(x), rtol=1e-4, atol=1e-5)


def test_a_quantised_weight_is_dequantised(generator: torch.Generator) -> None:
    layer = nn.Linear(32, 16).requires_grad_(False)
    quantised = QuantizedTensor.from_float(
        layer.weight.detach().bfloat16(), "TensorCoreFP8E4M3Layout", scale="recalculate"
    )
    plain = nn.Linear(32, 16)
    plain.weight = nn.Parameter(quantised.dequantize().float(), requires_grad=False)
    layer.weight = nn.Parameter(quantised, requires_grad=False)
    ours, reference = (
        new_adapter("dora", each, RANK, ALPHA, torch.Generator().manual_seed(0)) for each in (layer, plain)
    )
    assert torch.equal(ours.magnitude, reference.magnitude)


def test_norms_of_a_plain_8_bit_weight_are_not_computed_in_8_bit(generator: torch.Generator) -> None:
    layer = nn.Linear(32, 16).bfloat16()
    weight = torch.randn(16, 32, generator=generator).to(torch.float8_e4m3fn)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    adapter = new_adapter("dora", layer, RANK, ALPHA, generator)
    adapter.up.data = 1e-2 * torch.randn(adapter.up.shape, generator=generator)
    norms = column_norms(weight.float(), adapter.down, adapter.up * adapter.scale).flatten()
    scaled = adapter._scaled(layer, torch.ones(1, 32))
    torch.testing.assert_close(scaled.flatten(), adapter.magnitude.flatten() / norms, rtol=1e-5, atol=0.0)


def test_norms_are_those_of_the_layer_at_hand(generator: torch.Generator) -> None:
    first, second = (nn.Linear(32, 16).requires_grad_(False) for _ in range(2))
    adapter = new_adapter("dora", first, RANK, ALPHA, generator)
    fresh = new_adapter("dora", first, RANK, ALPHA, torch.Generator().manual_seed(0))
    fresh.load_state_dict(adapter.state_dict())
    x = torch.randn(3, 32, generator=generator)
    adapter(first, first, x)
    torch.testing.assert_close(adapter(second, second, x), fresh(second, second, x))


def test_magnitudes_are_not_rounded_to_bf16(generator: torch.Generator) -> None:
    layer = nn.Linear(64, 64).bfloat16().requires_grad_(False)
    adapter = new_adapter("dora", layer, RANK, ALPHA, generator)
    x = torch.randn(512, 64, generator=generator).bfloat16()
    before = adapter(layer, layer, x).float() - layer.bias.float()
    adapter.magnitude.data *= 1.006  # in bf16 1.0078
    after = adapter(layer, layer, x).float() - layer.bias.float()
    ratio = (before.flatten() @ after.flatten()) / before.square().sum()
    assert 1.0055 < ratio < 1.0065
