"""LoRA as pure functions: bypass equals the merged weight, up = 0 changes nothing."""

import math

import pytest
import torch
import torch.nn.functional as F
from lora_kiln.training.adapters import init_lora, lora_conv, lora_difference, lora_linear

RANK, SCALE, BATCH = 3, 0.7, 2
LINEAR = (12, 20)
CONVOLUTIONS = {
    "1d": ((6, 4, 3), (9,), dict(stride=(2,), padding=(1,), dilation=(1,))),
    "1x1": ((6, 4, 1, 1), (7, 5), dict(stride=(1, 1), padding=(0, 0), dilation=(1, 1))),
    "3x3": ((6, 4, 3, 3), (9, 7), dict(stride=(1, 1), padding=(1, 1), dilation=(1, 1))),
    "strided": ((6, 4, 3, 3), (9, 7), dict(stride=(2, 2), padding=(1, 1), dilation=(1, 1))),
    "dilated": ((6, 4, 3, 3), (9, 7), dict(stride=(1, 1), padding=(2, 2), dilation=(2, 2))),
    "same": ((6, 4, 3, 5), (9, 7), dict(stride=(1, 1), padding="same", dilation=(1, 1))),
    "3d": ((6, 4, 1, 3, 3), (2, 5, 5), dict(stride=(1, 1, 1), padding=(0, 1, 1), dilation=(1, 1, 1))),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def factors(shape, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    down, up = init_lora(shape, RANK, generator)
    return down, torch.randn(up.shape, generator=generator)


def convolve(x: torch.Tensor, weight: torch.Tensor, options: dict) -> torch.Tensor:
    return {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[weight.dim() - 2](x, weight, **options)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_linear_bypass_is_the_merged_weight(dtype: torch.dtype, generator: torch.Generator) -> None:
    down, up = (factor.double() for factor in factors(LINEAR, generator))
    x = torch.randn(BATCH, 5, LINEAR[1], generator=generator, dtype=torch.float64)
    merged = F.linear(x, SCALE * (up @ down))
    bypass = lora_linear(x.to(dtype), down, up, SCALE)
    assert bypass.dtype == dtype
    torch.testing.assert_close(bypass.double(), merged, atol=TOLERANCE[dtype] * merged.abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolution_bypass_is_the_merged_weight(kind: str, generator: torch.Generator) -> None:
    shape, size, options = CONVOLUTIONS[kind]
    down, up = (factor.double() for factor in factors(shape, generator))
    x = torch.randn(BATCH, shape[1], *size, generator=generator, dtype=torch.float64)
    merged = torch.einsum("or,ri...->oi...", up.flatten(1), down) * SCALE
    torch.testing.assert_close(lora_conv(x, down, up, SCALE, **options), convolve(x, merged, options))


@pytest.mark.parametrize("shape", [LINEAR, *(case[0] for case in CONVOLUTIONS.values())])
def test_the_difference_is_the_product_of_the_factors(shape, generator: torch.Generator) -> None:
    down, up = factors(shape, generator)
    expected = torch.einsum("or,ri...->oi...", up.flatten(1), down) * SCALE
    assert expected.shape == shape
    torch.testing.assert_close(lora_difference(down, up, SCALE), expected)


@pytest.mark.parametrize("shape", [LINEAR, CONVOLUTIONS["3x3"][0]])
def test_fresh_factors_change_nothing(shape, generator: torch.Generator) -> None:
    assert torch.equal(lora_difference(*init_lora(shape, RANK, generator), SCALE), torch.zeros(shape))


@pytest.mark.parametrize("shape", [(40, 300), (40, 30, 3, 3)])
def test_down_is_drawn_as_kaiming_uniform_draws_it(shape, generator: torch.Generator) -> None:
    down, _ = init_lora(shape, 64, generator)
    reference = torch.empty_like(down)
    torch.nn.init.kaiming_uniform_(reference, a=math.sqrt(5), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(down, reference)


def test_the_factors_have_the_rank(generator: torch.Generator) -> None:
    down, up = init_lora((6, 4, 3, 3), RANK, generator)
    assert down.shape == (RANK, 4, 3, 3) and up.shape == (6, RANK, 1, 1)


def test_gradients_reach_both_factors_in_float32(generator: torch.Generator) -> None:
    down, up = (factor.requires_grad_() for factor in factors(LINEAR, generator))
    lora_linear(torch.randn(BATCH, LINEAR[1], dtype=torch.bfloat16), down, up, SCALE).sum().backward()
    assert all(factor.grad.dtype == torch.float32 and factor.grad.abs().sum() > 0 for factor in (down, up))
