"""The loss, against each prediction's own space, in float64."""

import math

import pytest
import torch
from lora_kiln.training.basics.randomness import tensor_generator
from lora_kiln.training.config import ObjectiveConfig
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.objective import huber_threshold, loss_weight, sample_losses
from lora_kiln.training.learning.prediction import PREDICTIONS, Eps, Flow, Prediction

SHAPE = (3, 4, 8, 8)
SIGMAS = torch.tensor([0.03, 0.7, 14.0])
FLOW_SIGMAS = torch.tensor([0.02, 0.5, 0.98])
GAMMA = 5.0
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS_BAR = (1 - BETAS).cumprod(0)
"""Stable Diffusion's"""
FLOW = Flow(torch.linspace(0.001, 1.0, 1000))
STEPS = [10, 400, 950]
"""timesteps of the three samples"""


def of_name(prediction: str, sigma_data: float = 1.0) -> Prediction:
    table = torch.linspace(0.01, 1.0 if prediction == "flow" else 15.0, 100)
    return PREDICTIONS[prediction](table, sigma_data)


def sigmas(prediction: str) -> torch.Tensor:
    return FLOW_SIGMAS if prediction == "flow" else SIGMAS


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """x_0 and noise."""
    generator = tensor_generator(0, "pair")
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def losses_of(
    predict, prediction: Prediction, x_0, noise, sigma, cond=None, mask=None, perturbation=None, **settings
) -> torch.Tensor:
    """Each sample's loss; settings are those of the objective."""
    batch = Batch(x_0, noise, sigma, torch.ones(len(sigma)), cond, mask, perturbation)
    return sample_losses(predict, prediction, ObjectiveConfig(**settings), batch)


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
    weight = loss_weight(of_name(prediction, sigma_data), sigma)
    torch.testing.assert_close(weight.double() * x_0_error, expected, rtol=1e-5, atol=0)


def test_v_is_the_velocity_of_salimans_and_ho_in_variance_preserving_terms(pair) -> None:
    """v = alpha eps - sigma_vp x_0, with alpha = 1 / sqrt(1 + sigma^2) (arXiv:2202.00512, section 4)."""
    x_0, noise, sigma = pair[0].double(), pair[1].double(), columns(SIGMAS.double())
    alpha = 1 / (1 + sigma**2).sqrt()
    scale = alpha * sigma
    z_t, v = alpha * x_0 + scale * noise, alpha * noise - scale * x_0
    error = torch.randn(SHAPE, generator=tensor_generator(1, "error")).double()
    x_0_of_output = alpha * z_t - scale * (v + error)
    weighted = loss_weight(of_name("v"), SIGMAS).double() * per_sample((x_0_of_output - x_0) ** 2)
    torch.testing.assert_close(weighted, per_sample(error**2), rtol=1e-5, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("gamma", [1.0, GAMMA, 20.0])
def test_min_snr_gamma_weighs_x_0_by_min_of_snr_and_gamma(prediction: str, gamma: float) -> None:
    """Hang et al., arXiv:2303.09556, section 3.4: for every prediction the x_0 loss has weight min(SNR, gamma)."""
    snr = 1.0 / SIGMAS.double() ** 2
    expected = torch.minimum(snr, torch.tensor(gamma, dtype=torch.float64))
    torch.testing.assert_close(loss_weight(of_name(prediction), SIGMAS, gamma).double(), expected, rtol=1e-6, atol=0)


def test_min_snr_gamma_in_eps_space_is_the_papers_factor() -> None:
    snr = 1.0 / SIGMAS.double() ** 2
    factor = loss_weight(of_name("eps"), SIGMAS, GAMMA).double() / loss_weight(of_name("eps"), SIGMAS).double()
    torch.testing.assert_close(factor, snr.clamp(max=GAMMA) / snr, rtol=1e-5, atol=0)


def test_min_snr_gamma_in_v_space_is_the_papers_factor() -> None:
    snr = 1.0 / SIGMAS.double() ** 2
    factor = loss_weight(of_name("v"), SIGMAS, GAMMA).double() / loss_weight(of_name("v"), SIGMAS).double()
    torch.testing.assert_close(factor, snr.clamp(max=GAMMA) / (snr + 1), rtol=1e-5, atol=0)


def test_min_snr_gamma_leaves_a_flow_model_alone() -> None:
    flow = of_name("flow")
    assert torch.equal(loss_weight(flow, FLOW_SIGMAS, GAMMA), loss_weight(flow, FLOW_SIGMAS))


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_a_perfect_prediction_has_no_loss(pair, prediction: str) -> None:
    x_0, noise = pair
    losses = losses_of(lambda *_: x_0, of_name(prediction), x_0, noise, sigmas(prediction), min_snr_gamma=GAMMA)
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
            losses_of(predict, of_name(prediction), x_0[rows], noise[rows], sigma[rows], cond[rows]) for rows in groups
        ]
        losses = torch.cat(parts)
        losses.sum().backward()
        return weight.grad, losses.detach()

    for whole, single in zip(gradient_and_losses([[0, 1, 2]]), gradient_and_losses([[0], [1], [2]]), strict=True):
        torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)


def test_the_model_gets_the_noised_sample_its_level_and_its_condition(pair) -> None:
    seen = []
    losses_of(lambda *args: seen.append(args) or pair[0], of_name("eps"), *pair, SIGMAS, "condition")
    x_t, sigma, cond = seen[0]
    torch.testing.assert_close(x_t, pair[0] + columns(SIGMAS) * pair[1])
    assert torch.equal(sigma, SIGMAS) and cond == "condition"


@pytest.mark.parametrize(("sigma", "expected"), [(0.0, "x_0"), (1.0, "noise")])
def test_flow_goes_straight_from_data_to_noise(pair, sigma: float, expected: str) -> None:
    x_t = of_name("flow").add_noise(*pair, torch.full((SHAPE[0],), sigma))
    torch.testing.assert_close(x_t, pair[0] if expected == "x_0" else pair[1])


@pytest.mark.parametrize("shape", [(2, 4, 8), (2, 4, 3, 8, 8)])
def test_latents_may_have_any_number_of_dimensions(shape) -> None:
    x_0, noise, sigma = torch.randn(shape), torch.randn(shape), torch.tensor([0.5, 2.0])
    x_t = of_name("eps").add_noise(x_0, noise, sigma)
    torch.testing.assert_close(x_t[1], x_0[1] + 2.0 * noise[1])


def stable_diffusion_sigmas() -> torch.Tensor:
    return ((1 - ALPHAS_BAR) / ALPHAS_BAR).sqrt()


# ---------------------------------------------------------------- the whole loss, in each family's own terms


def network(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Stands for a network that predicts eps or v from its scaled input."""
    return weight * torch.tanh(x) + 0.2 * x


def vp_loss(
    prediction: str, x_0, noise, levels, weight, min_snr_gamma=0.0, debiased_estimation=False, loss="l2", huber_c=0.1,
    huber_schedule="snr", mask=None, perturbation=None,
) -> torch.Tensor:  # fmt: skip
    """Each sample's loss as kohya's trainer takes it, in the network's own space and in float64.

    Args:
        levels: alpha_bar of eps and v models, sigma of flow models; (B,).
    """
    x_0, noise, level = x_0.double(), noise.double(), columns(levels.double())
    seen = noise if perturbation is None else noise + perturbation.double()
    if prediction == "flow":
        z, target = (1 - level) * x_0 + level * seen, noise - x_0
        snr, time = ((1 - level) / level) ** 2, level
    else:
        root, rest = level.sqrt(), (1 - level).sqrt()
        z, target = root * x_0 + rest * seen, noise if prediction == "eps" else root * noise - rest * x_0
        snr, time = level / (1 - level), columns(torch.tensor(STEPS) / 1000)
    difference = network(z, weight.double()) - target
    c = {
        "constant": torch.full_like(snr, huber_c),
        "exponential": torch.exp(math.log(huber_c) * time),
        "snr": (1 - huber_c) / (1 + (1 / snr).sqrt()) ** 2 + huber_c,
    }[huber_schedule]
    losses = {
        "l2": difference**2,
        "huber": 2 * c * ((difference**2 + c**2).sqrt() - c),
        "smooth_l1": 2 * ((difference**2 + c**2).sqrt() - c),
    }[loss]
    if mask is not None:
        losses = losses * mask.double()
    losses = losses.mean((1, 2, 3))
    snr = snr.flatten()
    if prediction != "flow":
        if min_snr_gamma:
            losses = losses * snr.clamp(max=min_snr_gamma) / (snr + (prediction == "v"))
        if debiased_estimation:
            snr = snr.clamp(max=1000)
            losses = losses / (snr.sqrt() if prediction == "eps" else snr + 1)
    return losses


TECHNIQUES = {
    "plain": {},
    "min_snr_gamma": {"min_snr_gamma": 5.0},
    "debiased_estimation": {"debiased_estimation": True},
    "masked": {"mask": torch.rand(3, 1, 8, 8, generator=tensor_generator("mask"))},
    "input perturbation": {"perturbation": 0.1 * torch.randn(SHAPE, generator=tensor_generator("perturbation"))},
    **{
        f"{loss} {schedule}": {"loss": loss, "huber_c": 0.07, "huber_schedule": schedule}
        for loss in ("huber", "smooth_l1")
        for schedule in ("constant", "exponential", "snr")
    },
}
TECHNIQUES["all"] = {
    **TECHNIQUES["masked"], **TECHNIQUES["input perturbation"], **TECHNIQUES["huber snr"], "min_snr_gamma": 5.0,
}  # fmt: skip


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_each_technique_is_its_formula_in_the_familys_own_space(pair, prediction: str, technique: str) -> None:
    settings = TECHNIQUES[technique]
    x_0, noise = pair
    if prediction == "flow":
        kind = Flow(torch.linspace(0.001, 1.0, 1000))
        levels = sigma = torch.tensor([0.1, 0.5, 0.9])
    else:
        kind = PREDICTIONS[prediction](stable_diffusion_sigmas().float())
        levels, sigma = ALPHAS_BAR[STEPS], kind.sigmas[STEPS]
    ours, theirs = (torch.tensor(0.6, requires_grad=True) for _ in range(2))

    def predict(x_t: torch.Tensor, sigma: torch.Tensor, cond: None) -> torch.Tensor:
        sigma = columns(sigma)
        if prediction == "flow":
            return x_t - sigma * network(x_t, ours)
        z = x_t / (1 + sigma**2).sqrt()
        if prediction == "eps":
            return x_t - sigma * network(z, ours)
        return (z - sigma * network(z, ours)) / (1 + sigma**2).sqrt()

    losses = losses_of(predict, kind, x_0, noise, sigma, **settings)
    expected = vp_loss(prediction, x_0, noise, levels, theirs, **settings)
    torch.testing.assert_close(losses.double(), expected, rtol=2e-4, atol=0)
    losses.sum().backward()
    expected.sum().backward()
    assert ours.grad.item() == pytest.approx(theirs.grad.item(), rel=2e-4)


def test_debiased_estimation_takes_no_snr_above_1000() -> None:
    low = torch.tensor([0.001, 0.01])
    factor = loss_weight(of_name("eps"), low, 0.0, True) / loss_weight(of_name("eps"), low)
    torch.testing.assert_close(factor, torch.full((2,), 1000**-0.5))


def test_huber_is_the_square_near_and_a_line_far_away() -> None:
    x_0 = torch.zeros(2, 1, 1, 1)
    error = torch.tensor([1e-4, 100.0]).reshape(2, 1, 1, 1)
    sigma = torch.tensor([1.0, 1.0])
    losses = losses_of(
        lambda *_: error, of_name("eps"), x_0, x_0, sigma, None, loss="huber", huber_c=0.1, huber_schedule="constant"
    )
    assert losses.tolist() == pytest.approx([1e-8, 2 * 0.1 * 100], rel=2e-3)


def test_huber_has_a_gradient_at_no_error() -> None:
    prediction = torch.zeros(1, 1, 1, 1, requires_grad=True)
    x_0 = torch.zeros(1, 1, 1, 1)
    losses_of(lambda *_: prediction, of_name("eps"), x_0, x_0, torch.ones(1), None, loss="smooth_l1").backward()
    assert prediction.grad.item() == 0.0


@pytest.mark.parametrize("schedule", ["exponential", "snr"])
@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_scheduled_huber_goes_from_square_to_robust_with_the_noise(prediction: str, schedule: str) -> None:
    kind = FLOW if prediction == "flow" else Eps(stable_diffusion_sigmas().float())
    thresholds = huber_threshold(kind, kind.sigmas, 0.05, schedule)
    assert (thresholds.diff() < 0).all() and 0.9 < thresholds[0] <= 1.0 and thresholds[-1] < 0.07


def test_an_unknown_huber_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'cosine'"):
        huber_threshold(FLOW, FLOW.sigmas, 0.1, "cosine")


def test_a_mask_covers_every_channel_and_frame() -> None:
    shape = (2, 4, 3, 8, 8)
    x_0, noise, error = (torch.randn(shape, generator=tensor_generator(n)) for n in range(3))
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4] = 1.0
    losses = losses_of(lambda *_: x_0 + error, of_name("eps"), x_0, noise, torch.ones(2), None, mask=mask)
    assert losses[0] == pytest.approx(float(error[0, :, :, :4].square().mean() / 2), rel=1e-5)
    assert losses[1] == 0.0


def test_a_mask_of_ones_changes_nothing(pair) -> None:
    losses = [
        losses_of(lambda x_t, *_: 0.5 * x_t, of_name("eps"), *pair, SIGMAS, None, mask=mask)
        for mask in (None, torch.ones(3, 1, 8, 8))
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_the_model_sees_perturbed_noise(pair, prediction: str) -> None:
    x_0, noise = pair
    seen, sigma = [], sigmas(prediction)
    perturbation = torch.randn(SHAPE, generator=tensor_generator(5))
    args = (of_name(prediction), x_0, noise, sigma, None)
    losses_of(lambda x_t, *_: seen.append(x_t) or x_0, *args, perturbation=perturbation)
    torch.testing.assert_close(seen[0], of_name(prediction).add_noise(x_0, noise + perturbation, sigma))
