"""The loss, against each family's own prediction space, in float64."""

import pytest
import torch
from lora_kiln.training.objective import (
    Family,
    add_noise,
    draw_noise,
    draw_sigma,
    loss_weight,
    sample_losses,
)
from lora_kiln.training.randomness import tensor_generator

SHAPE = (3, 4, 8, 8)
SIGMAS = torch.tensor([0.03, 0.7, 14.0])
FLOW_SIGMAS = torch.tensor([0.02, 0.5, 0.98])
GAMMA = 5.0
MANY = 4000


def family(prediction: str, sigma_data: float = 1.0) -> Family:
    return Family(prediction, torch.linspace(0.01, 1.0 if prediction == "flow" else 15.0, 100), sigma_data)


def sigmas(prediction: str) -> torch.Tensor:
    return FLOW_SIGMAS if prediction == "flow" else SIGMAS


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 and noise."""
    generator = tensor_generator(0, "pair")
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def per_sample(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).mean(1)


def columns(sigma: torch.Tensor) -> torch.Tensor:
    return sigma.reshape(-1, 1, 1, 1)


def own_space_loss(prediction: str, sigma_data: float, x_0, noise, sigma, error_of) -> torch.Tensor:
    """The loss as the family itself is trained: MSE of what the network outputs, in float64.

    Args:
        error_of: gives the network's output error in the family's own space, which is turned into its x_0.
    """
    x_0, noise, sigma = x_0.double(), noise.double(), columns(sigma.double())
    if prediction == "flow":
        x_t, target = (1 - sigma) * x_0 + sigma * noise, noise - x_0
        output = target + error_of(target)
        return per_sample((output - target) ** 2), x_t - sigma * output
    x_t = x_0 + sigma * noise
    if prediction == "eps":
        output = noise + error_of(noise)
        return per_sample((output - noise) ** 2), x_t - sigma * output
    norm = (sigma**2 + sigma_data**2).sqrt()
    target = (sigma_data**2 * x_t / norm**2 - x_0) * norm / (sigma * sigma_data)
    output = target + error_of(target)
    return per_sample((output - target) ** 2), sigma_data**2 * x_t / norm**2 - sigma * sigma_data / norm * output


@pytest.mark.parametrize(("prediction", "sigma_data"), [("eps", 1.0), ("v", 1.0), ("v", 0.5), ("flow", 1.0)])
def test_the_weighted_x_0_error_is_the_error_in_the_familys_own_space(pair, prediction, sigma_data) -> None:
    sigma = sigmas(prediction)
    error = torch.randn(SHAPE, generator=tensor_generator(1, "error")).double()
    expected, x_0_of_output = own_space_loss(prediction, sigma_data, *pair, sigma, lambda _: error)
    x_0_error = per_sample((x_0_of_output - pair[0].double()) ** 2)
    weight = loss_weight(family(prediction, sigma_data), sigma)
    torch.testing.assert_close(weight.double() * x_0_error, expected, rtol=1e-5, atol=0)


def test_v_is_the_velocity_of_salimans_and_ho_in_variance_preserving_terms(pair) -> None:
    """v = alpha eps - sigma_vp x_0, with alpha = 1 / sqrt(1 + sigma^2) (arXiv:2202.00512, section 4)."""
    x_0, noise, sigma = pair[0].double(), pair[1].double(), columns(SIGMAS.double())
    alpha = 1 / (1 + sigma**2).sqrt()
    scale = alpha * sigma
    z_t, v = alpha * x_0 + scale * noise, alpha * noise - scale * x_0
    error = torch.randn(SHAPE, generator=tensor_generator(1, "error")).double()
    x_0_of_output = alpha * z_t - scale * (v + error)
    weighted = loss_weight(family("v"), SIGMAS).double() * per_sample((x_0_of_output - x_0) ** 2)
    torch.testing.assert_close(weighted, per_sample(error**2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("gamma", [1.0, GAMMA, 20.0])
def test_min_snr_gamma_weighs_x_0_by_min_of_snr_and_gamma(prediction: str, gamma: float) -> None:
    """Hang et al., arXiv:2303.09556, section 3.4: for every prediction the x_0 loss has weight min(SNR, gamma)."""
    snr = 1.0 / SIGMAS.double() ** 2
    expected = torch.minimum(snr, torch.tensor(gamma, dtype=torch.float64))
    torch.testing.assert_close(loss_weight(family(prediction), SIGMAS, gamma).double(), expected, rtol=1e-6, atol=0)


def test_min_snr_gamma_in_eps_space_is_the_papers_factor() -> None:
    snr = 1.0 / SIGMAS.double() ** 2
    factor = loss_weight(family("eps"), SIGMAS, GAMMA).double() / loss_weight(family("eps"), SIGMAS).double()
    torch.testing.assert_close(factor, snr.clamp(max=GAMMA) / snr, rtol=1e-5, atol=0)


def test_min_snr_gamma_in_v_space_is_the_papers_factor() -> None:
    snr = 1.0 / SIGMAS.double() ** 2
    factor = loss_weight(family("v"), SIGMAS, GAMMA).double() / loss_weight(family("v"), SIGMAS).double()
    torch.testing.assert_close(factor, snr.clamp(max=GAMMA) / (snr + 1), rtol=1e-5, atol=0)


def test_min_snr_gamma_leaves_a_flow_model_alone() -> None:
    flow = family("flow")
    assert torch.equal(loss_weight(flow, FLOW_SIGMAS, GAMMA), loss_weight(flow, FLOW_SIGMAS))


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_a_perfect_prediction_has_no_loss(pair, prediction: str) -> None:
    x_0, noise = pair
    losses = sample_losses(lambda *_: x_0, family(prediction), x_0, noise, sigmas(prediction), None, GAMMA)
    assert torch.equal(losses, torch.zeros(SHAPE[0]))


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_a_batch_has_the_losses_and_gradients_of_its_samples(pair, prediction: str) -> None:
    x_0, noise, sigma = *pair, sigmas(prediction)
    cond = torch.randn(SHAPE[0], 1, 1, 1)

    def gradient_and_losses(groups: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.full((SHAPE[1], 1, 1), 0.3, requires_grad=True)

        def predict(x_t: torch.Tensor, sigma: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
            return x_t * weight + cond

        parts = [
            sample_losses(predict, family(prediction), x_0[rows], noise[rows], sigma[rows], cond[rows])
            for rows in groups
        ]
        losses = torch.cat(parts)
        losses.sum().backward()
        return weight.grad, losses.detach()

    for whole, single in zip(gradient_and_losses([[0, 1, 2]]), gradient_and_losses([[0], [1], [2]]), strict=True):
        torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)


def test_the_model_gets_the_noised_sample_its_level_and_its_condition(pair) -> None:
    seen = []
    sample_losses(lambda *args: seen.append(args) or pair[0], family("eps"), *pair, SIGMAS, "condition")
    x_t, sigma, cond = seen[0]
    torch.testing.assert_close(x_t, pair[0] + columns(SIGMAS) * pair[1])
    assert torch.equal(sigma, SIGMAS) and cond == "condition"


@pytest.mark.parametrize(("sigma", "expected"), [(0.0, "x_0"), (1.0, "noise")])
def test_flow_goes_straight_from_data_to_noise(pair, sigma: float, expected: str) -> None:
    x_t = add_noise(family("flow"), *pair, torch.full((SHAPE[0],), sigma))
    torch.testing.assert_close(x_t, pair[0] if expected == "x_0" else pair[1])


@pytest.mark.parametrize("shape", [(2, 4, 8), (2, 4, 3, 8, 8)])
def test_latents_may_have_any_number_of_dimensions(shape) -> None:
    x_0, noise, sigma = torch.randn(shape), torch.randn(shape), torch.tensor([0.5, 2.0])
    x_t = add_noise(family("eps"), x_0, noise, sigma)
    torch.testing.assert_close(x_t[1], x_0[1] + 2.0 * noise[1])


def test_noise_levels_are_drawn_evenly_from_the_table() -> None:
    table = Family("eps", torch.arange(10.0))
    drawn = torch.stack([draw_sigma(table, tensor_generator(step, "sigma")) for step in range(MANY)])
    counts = torch.bincount(drawn.long(), minlength=10)
    assert len(counts) == 10
    assert ((counts - MANY / 10).abs() < 5 * (MANY * 0.09) ** 0.5).all()


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
