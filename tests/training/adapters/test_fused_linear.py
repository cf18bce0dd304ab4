"""LoRA on a layer as one operation."""

import comfy.ops
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters import LoRA, init_lora
from lora_kiln.training.adapters.base import AddedAdapter
from lora_kiln.training.adapters.dropout import draw_dropout
from lora_kiln.training.adapters.flat import FlatParameters
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.host.products import compute_quantised
from lora_kiln.training.host.quantise import to_fp8
from torch import nn

IN, OUT, RANK, ALPHA = 12, 20, 3, 5.0
CPU = torch.device("cpu")


def in_8_bit(is_multiplied: bool) -> nn.Module:
    """A layer of the host's whose weight is quantised."""
    layer = comfy.ops.disable_weight_init.Linear(IN, OUT)
    layer.bias.data.normal_()
    weight = to_fp8(torch.randn(OUT, IN), torch.float32, is_multiplied)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    holder = nn.Sequential(layer)
    assert compute_quantised(holder)
    return layer


LAYERS = {
    "linear": (lambda: nn.Linear(IN, OUT), (2, 7, IN)),
    "linear without bias": (lambda: nn.Linear(IN, OUT, bias=False), (5, IN)),
    "convolution 1x1": (lambda: nn.Conv2d(IN, OUT, 1), (2, IN, 4, 6)),
    "fp8": (lambda: in_8_bit(False), (2, 7, IN)),
    "fp8 matmul": (lambda: in_8_bit(True), (2, 7, IN)),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, LoRA, torch.Tensor]:
    torch.manual_seed(0)
    layer, shape = LAYERS[name][0]().to(dtype).requires_grad_(False), LAYERS[name][1]
    down, up = init_lora(tuple(layer.weight.shape), RANK, torch.Generator().manual_seed(1))
    x = torch.randn(shape).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    return layer, LoRA(down, torch.randn(up.shape), ALPHA), x.requires_grad_()


def results(
    name: str, is_fused: bool, dtype: torch.dtype = torch.float32, rank_dropout: float = 0.0
) -> list[torch.Tensor]:
    """Output, and gradients of x, down and up."""
    layer, adapter, x = made(name, dtype)
    draw_dropout({"it": adapter}, LoRAConfig.of(rank_dropout=rank_dropout).adapter, 1, 0, 0)
    flat = FlatParameters([adapter], CPU, dtype)
    output = adapter.fused(layer, x, host.PRODUCTS) if is_fused else AddedAdapter.adapted(adapter, layer, layer, x)
    assert output is not None
    torch.manual_seed(2)
    output.backward(torch.randn(output.shape).to(dtype))
    assert x.grad is not None and flat.values.grad is not None and flat.values.grad.any()
    return [output.detach(), x.grad, adapter.down.grad.clone(), adapter.up.grad.clone()]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rank_dropout", [0.0, 0.5])
def test_it_gives_what_layer_and_adapter_give_apart(name: str, rank_dropout: float) -> None:
    ways = [results(name, is_fused, rank_dropout=rank_dropout) for is_fused in (True, False)]
    for fused, apart in zip(*ways, strict=True):
        assert fused.shape == apart.shape
        torch.testing.assert_close(fused, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_bf16_is_as_near_to_float32_as_apart(name: str) -> None:
    for exact, fused, apart in zip(
        results(name, False), results(name, True, torch.bfloat16), results(name, False, torch.bfloat16), strict=True
    ):
        error, usual = ((each.float() - exact).norm() / exact.norm() for each in (fused, apart))
        assert error < 1.5 * usual + 1e-3


@pytest.mark.parametrize("name", LAYERS)
def test_its_output_may_be_written_to(name: str) -> None:
    """As Flux does with what its first layers give."""
    layer, adapter, x = made(name)
    FlatParameters([adapter], CPU, torch.float32)
    output = adapter.fused(layer, x, host.PRODUCTS)
    assert output is not None
    output += 1.0
    output.sum().backward()
    assert x.grad is not None and adapter.up.grad.any()


def test_gradients_add_up_over_batches() -> None:
    layer, adapter, x = made("linear")
    FlatParameters([adapter], CPU, torch.float32)
    sums = []
    for _ in range(2):
        adapter.fused(layer, x, host.PRODUCTS).sum().backward()  # pyright: ignore[reportOptionalMemberAccess]
        sums.append(adapter.up.grad.clone())
    torch.testing.assert_close(sums[1], 2 * sums[0])


def without_places(layer, adapter, x):
    adapter.down.grad = None


def with_dropout(layer, adapter, x):
    draw_dropout({"it": adapter}, LoRAConfig.of(dropout=0.5).adapter, 1, 0, 0)


def of_other_format(layer, adapter, x):
    layer.to(torch.bfloat16)


@pytest.mark.parametrize("change", [without_places, with_dropout, of_other_format])
def test_what_it_cannot_do_is_left_to_the_plain_way(change) -> None:
    layer, adapter, x = made("linear")
    FlatParameters([adapter], CPU, torch.float32)
    change(layer, adapter, x)
    assert adapter.fused(layer, x, host.PRODUCTS) is None


@pytest.mark.parametrize("make", [lambda: nn.Conv2d(IN, OUT, 3), lambda: nn.Conv2d(IN, OUT, 1, stride=2)])
def test_other_convolutions_are_left_to_the_plain_way(make) -> None:
    layer = make().requires_grad_(False)
    adapter = LoRA(*init_lora(tuple(layer.weight.shape), RANK, torch.Generator()), ALPHA)
    FlatParameters([adapter], CPU, torch.float32)
    x = torch.randn(1, IN, 5, 5).contiguous(memory_format=torch.channels_last)
    assert adapter.fused(layer, x, host.PRODUCTS) is None
