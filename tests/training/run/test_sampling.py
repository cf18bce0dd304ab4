"""The sampler, where the answer is known."""

import pytest
import torch
from lora_kiln.training.run.sampling import euler

SHAPE = (1, 4, 8, 8)
STEPS = 400


def falling(steps: int, first: float = 10.0) -> torch.Tensor:
    return torch.cat([torch.linspace(first**0.25, 0.02**0.25, steps) ** 4, torch.zeros(1)])


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def test_a_model_that_knows_the_picture_gives_it(noise: torch.Tensor) -> None:
    picture = torch.full(SHAPE, 0.3)
    x = euler(lambda x, sigma, cond: picture, 10.0 * noise, falling(5), None, None, 1.0)
    torch.testing.assert_close(x, picture)


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_of_gaussian_data_it_gives_samples_of_that_spread(noise: torch.Tensor, spread: float) -> None:
    """The best x_0 for N(0, s^2) is x s^2 / (s^2 + sigma^2); the flow ends at x s / sqrt(s^2 + sigma_max^2)."""

    def predict(x: torch.Tensor, sigma: torch.Tensor, cond: None) -> torch.Tensor:
        return x * spread**2 / (spread**2 + sigma.reshape(-1, 1, 1, 1) ** 2)

    start = 10.0 * noise
    exact = start * spread / (spread**2 + 100.0) ** 0.5
    torch.testing.assert_close(euler(predict, start, falling(STEPS), None, None, 1.0), exact, rtol=0.03, atol=1e-3)


def test_guidance_goes_beyond_the_condition(noise: torch.Tensor) -> None:
    x = euler(lambda x, sigma, cond: torch.full(SHAPE, cond), 10.0 * noise, falling(5), 0.5, 0.2, 3.0)
    torch.testing.assert_close(x, torch.full(SHAPE, 0.2 + 3.0 * (0.5 - 0.2)))


def test_without_guidance_the_empty_prompt_is_not_asked(noise: torch.Tensor) -> None:
    asked = []
    euler(lambda x, sigma, cond: asked.append(cond) or x, noise, falling(3), "cond", "uncond", 1.0)
    assert asked == ["cond"] * 3


def test_the_model_hears_each_level_for_each_picture(noise: torch.Tensor) -> None:
    heard = []
    sigmas = falling(4)
    euler(lambda x, sigma, cond: heard.append(sigma) or x, noise.expand(2, *SHAPE[1:]), sigmas, None, None, 1.0)
    assert torch.equal(torch.stack(heard), sigmas[:4, None].expand(4, 2))
