"""The noise of training samples."""

import math

import pytest
import torch
import torch.nn.functional as F
from lora_kiln.training.basics.randomness import tensor_generator
from lora_kiln.training.learning.noise import draw_noise, multires_noise


def test_noise_is_unit_gaussian() -> None:
    noise = draw_noise((4, 64, 64), 0.0, tensor_generator(0, "noise"))
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_noise_offset_shifts_each_channel_as_a_whole() -> None:
    plain = draw_noise((4, 8, 8), 0.0, tensor_generator(0, "noise"))
    shift = draw_noise((4, 8, 8), 0.5, tensor_generator(0, "noise")) - plain
    torch.testing.assert_close(shift, shift[:, :1, :1].expand_as(shift))
    assert shift[:, 0, 0].unique().numel() == 4


def test_noise_offset_has_the_asked_spread() -> None:
    shifts = [draw_noise((4, 64, 64), 0.5, tensor_generator(n, "noise")).mean((1, 2)) for n in range(200)]
    assert torch.cat(shifts).std() == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("shape", [(4, 16, 24), (4, 3, 16, 24)])
def test_multires_noise_is_the_sum_of_its_layers_at_unit_deviation(shape) -> None:
    noise, iterations, discount = torch.randn(shape, generator=tensor_generator(0)), 3, 0.4
    generator, total = tensor_generator(1), noise.clone()
    for i in range(iterations):
        ratio = (2 + 2 * torch.rand((), generator=generator).item()) ** i
        height, width = math.floor(16 / ratio), math.floor(24 / ratio)
        layer = torch.randn(*shape[:-2], height, width, generator=generator).reshape(-1, 1, height, width)
        total += discount**i * F.interpolate(layer, (16, 24), mode="bilinear").reshape(shape)
    made = multires_noise(noise, iterations, discount, tensor_generator(1))
    torch.testing.assert_close(made, total / total.std())


def between_neighbours(iterations: int, discount: float) -> float:
    """The mean correlation of pixels two apart."""
    values = []
    for n in range(20):
        noise = torch.randn(4, 64, 64, generator=tensor_generator(n))
        made = multires_noise(noise, iterations, discount, tensor_generator(n, "multires"))
        values.append(float((made[..., 2:] * made[..., :-2]).mean()))
    return sum(values) / len(values)


def test_multires_noise_has_more_of_the_coarse_the_stronger_its_layers() -> None:
    white, weak, strong = between_neighbours(1, 0.3), between_neighbours(6, 0.3), between_neighbours(6, 0.8)
    assert abs(white) < 0.005 and 0.01 < weak < 0.1 and strong > 0.2


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 2, 1, 1)])
def test_multires_noise_ends_at_the_smallest_side(shape) -> None:
    made = multires_noise(torch.randn(shape, generator=tensor_generator(0)), 10, 0.3, tensor_generator(1))
    assert made.shape == shape and made.std() == pytest.approx(1.0)
