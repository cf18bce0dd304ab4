"""The loss, against each family's own prediction space, in float64."""

import math
from statistics import NormalDist

import comfy.model_sampling
import pytest
import torch
import torch.nn.functional as F
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from lora_kiln.training.basics.randomness import tensor_generator
from lora_kiln.training.learning.objective import (
    Family,
    add_noise,
    density_and_shift,
    draw_noise,
    draw_sigma,
    huber_threshold,
    loss_weight,
    multires_noise,
    sample_losses,
    zero_terminal_sigmas,
)

SHAPE = (3, 4, 8, 8)
SIGMAS = torch.tensor([0.03, 0.7, 14.0])
FLOW_SIGMAS = torch.tensor([0.02, 0.5, 0.98])
GAMMA = 5.0
MANY = 4000
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS_BAR = (1 - BETAS).cumprod(0)
"""Stable Diffusion's"""
STEPS = [10, 400, 950]
"""timesteps of the three samples"""


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


FLOW = Family("flow", torch.linspace(0.001, 1.0, 1000), shift=3.0)
DISCRETE = Family("eps", torch.arange(1000.0))


def drawn(family_: Family, *args, **kwargs) -> torch.Tensor:
    return torch.stack([draw_sigma(family_, tensor_generator(n, "sigma"), *args, **kwargs) for n in range(MANY)])


def distance(samples: torch.Tensor, cdf) -> float:
    """Kolmogorov and Smirnov's, to a distribution function."""
    ranked = samples.double().sort().values
    expected = torch.tensor([cdf(value) for value in ranked.tolist()], dtype=torch.float64)
    rank = torch.arange(1, len(ranked) + 1) / len(ranked)
    return float((rank - expected).abs().max())


KS_LIMIT = 1.63 / MANY**0.5
"""At 1 % significance."""


def logit_normal_cdf(mean: float, std: float, shift: float):
    def cdf(sigma: float) -> float:
        if not 0 < sigma < 1:
            return float(sigma >= 1)
        time = sigma / (shift - (shift - 1) * sigma)
        return NormalDist(mean, std).cdf(math.log(time / (1 - time)))

    return cdf


@pytest.mark.parametrize(
    ("mean", "std", "shift"), [(0.0, 1.0, 1.0), (-0.5, 0.7, 1.0), (0.0, 1.0, 3.0), (0.4, 1.5, 0.5)]
)
def test_logit_normal_times_are_sigmoids_of_gaussians_then_shifted(mean: float, std: float, shift: float) -> None:
    """Esser et al., arXiv:2403.03206: equations 19 and 23."""
    samples = drawn(FLOW, "logit_normal", mean, std, shift)
    assert distance(samples, logit_normal_cdf(mean, std, shift)) < KS_LIMIT
    assert distance(samples, logit_normal_cdf(mean + 0.2, std, shift)) > KS_LIMIT


def test_uniform_flow_times_are_even() -> None:
    assert distance(drawn(FLOW), lambda sigma: sigma) < KS_LIMIT


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("low", "high"), [(200, 700), (0, 400), (900, 1000)])
def test_a_range_keeps_the_shape_of_the_density_within_it(density: str, shift: float, low: int, high: int) -> None:
    """As if samples outside were thrown away: nothing is squeezed, nothing piles up at the ends."""
    whole = logit_normal_cdf(0.0, 1.0, shift) if density == "logit_normal" else lambda t: t / (shift - (shift - 1) * t)
    least, most = whole(low / 1000), whole(high / 1000)
    samples = drawn(FLOW, density, shift=shift, min_timestep=low, max_timestep=high)
    assert low / 1000 <= samples.min() and samples.max() <= high / 1000 + 1e-6
    assert distance(samples, lambda sigma: (whole(sigma) - least) / (most - least)) < KS_LIMIT


def test_a_flow_model_is_never_asked_for_sigma_zero() -> None:
    samples = drawn(FLOW, "logit_normal", -20.0, 1.0)
    assert samples.min() >= 0.00099 and loss_weight(FLOW, samples).isfinite().all()


@pytest.mark.parametrize("density", ["uniform", "logit_normal"])
def test_a_range_of_the_table_is_what_its_timesteps_say(density: str) -> None:
    samples = drawn(DISCRETE, density, min_timestep=200, max_timestep=210)
    assert set(samples.tolist()) == set(map(float, range(200, 210)))


@pytest.mark.parametrize("length", [10, 3000])
def test_a_range_is_of_1000_whatever_the_tables_length(length: int) -> None:
    table = Family("eps", torch.arange(float(length)))
    samples = drawn(table, min_timestep=500, max_timestep=600)
    assert samples.min() == length // 2 and samples.max() == length * 6 // 10 - 1


def test_logit_normal_timesteps_of_a_table_are_floors_of_the_times() -> None:
    cdf = logit_normal_cdf(0.3, 0.8, 1.0)
    assert distance(drawn(DISCRETE, "logit_normal", 0.3, 0.8), lambda index: cdf((index + 1) / 1000)) < KS_LIMIT


@pytest.mark.parametrize(
    ("family_", "sampling", "timestep_shift", "expected"),
    [
        (DISCRETE, "auto", 2.0, ("uniform", 1.0)),
        (FLOW, "auto", 0.0, ("logit_normal", 3.0)),
        (FLOW, "uniform", 2.0, ("uniform", 1.0)),
        (FLOW, "logit_normal", 2.0, ("logit_normal", 1.0)),
        (FLOW, "shift", 2.0, ("logit_normal", 2.0)),
        (FLOW, "shift", 0.0, ("logit_normal", 3.0)),
    ],
)
def test_timestep_sampling_by_its_name(family_: Family, sampling: str, timestep_shift: float, expected) -> None:
    assert density_and_shift(family_, sampling, timestep_shift, 64, 64) == expected


@pytest.mark.parametrize(("side", "mu"), [(32, 0.5), (64, 0.63), (128, 1.15)])
def test_resolution_shift_is_fluxs(side: int, mu: float) -> None:
    """mu of 256 tokens, of a picture of 512 pixels and of one of 1024."""
    density, shift = density_and_shift(FLOW, "resolution_shift", 2.0, side, side)
    assert density == "logit_normal" and shift == pytest.approx(math.exp(mu))


def test_an_unknown_timestep_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="'mode'"):
        density_and_shift(FLOW, "mode", 0.0, 64, 64)


def test_the_whole_table_is_drawn_as_ever() -> None:
    expected = torch.randint(0, 1000, (), generator=tensor_generator(7, "sigma"))
    assert draw_sigma(DISCRETE, tensor_generator(7, "sigma")) == expected


def stable_diffusion_sigmas() -> torch.Tensor:
    return ((1 - ALPHAS_BAR) / ALPHAS_BAR).sqrt()


def test_zero_terminal_snr_is_algorithm_1_of_lin_et_al() -> None:
    rescaled = (1 - rescale_zero_terminal_snr(BETAS)).cumprod(0)
    sigmas = zero_terminal_sigmas(stable_diffusion_sigmas())
    torch.testing.assert_close(1 / (1 + sigmas[:-1] ** 2), rescaled[:-1], rtol=1e-6, atol=1e-12)
    assert rescaled[-1] == 0 and 4518 < sigmas[-1] < 4519


def test_zero_terminal_snr_is_the_hosts_table() -> None:
    sigmas = stable_diffusion_sigmas().float()
    hosts = comfy.model_sampling.rescale_zero_terminal_snr_sigmas(sigmas)
    torch.testing.assert_close(zero_terminal_sigmas(sigmas), hosts, rtol=1e-3, atol=0)


def test_zero_terminal_snr_leaves_its_argument_and_the_first_level_alone() -> None:
    sigmas = stable_diffusion_sigmas().float()
    before = sigmas.clone()
    rescaled = zero_terminal_sigmas(sigmas)
    assert torch.equal(sigmas, before) and rescaled.dtype == sigmas.dtype
    assert rescaled[0] == pytest.approx(float(sigmas[0]), rel=1e-5) and (rescaled.diff() > 0).all()


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
        family_ = Family("flow", torch.linspace(0.001, 1.0, 1000))
        levels = sigma = torch.tensor([0.1, 0.5, 0.9])
    else:
        family_ = Family(prediction, stable_diffusion_sigmas().float())
        levels, sigma = ALPHAS_BAR[STEPS], family_.sigmas[STEPS]
    ours, theirs = (torch.tensor(0.6, requires_grad=True) for _ in range(2))

    def predict(x_t: torch.Tensor, sigma: torch.Tensor, cond: None) -> torch.Tensor:
        sigma = columns(sigma)
        if prediction == "flow":
            return x_t - sigma * network(x_t, ours)
        z = x_t / (1 + sigma**2).sqrt()
        if prediction == "eps":
            return x_t - sigma * network(z, ours)
        return (z - sigma * network(z, ours)) / (1 + sigma**2).sqrt()

    losses = sample_losses(predict, family_, x_0, noise, sigma, None, **settings)
    expected = vp_loss(prediction, x_0, noise, levels, theirs, **settings)
    torch.testing.assert_close(losses.double(), expected, rtol=2e-4, atol=0)
    losses.sum().backward()
    expected.sum().backward()
    assert ours.grad.item() == pytest.approx(theirs.grad.item(), rel=2e-4)


def test_debiased_estimation_takes_no_snr_above_1000() -> None:
    low = torch.tensor([0.001, 0.01])
    factor = loss_weight(family("eps"), low, 0.0, True) / loss_weight(family("eps"), low)
    torch.testing.assert_close(factor, torch.full((2,), 1000**-0.5))


def test_huber_is_the_square_near_and_a_line_far_away() -> None:
    x_0 = torch.zeros(2, 1, 1, 1)
    error = torch.tensor([1e-4, 100.0]).reshape(2, 1, 1, 1)
    sigma = torch.tensor([1.0, 1.0])
    losses = sample_losses(
        lambda *_: error, family("eps"), x_0, x_0, sigma, None, loss="huber", huber_c=0.1, huber_schedule="constant"
    )
    assert losses.tolist() == pytest.approx([1e-8, 2 * 0.1 * 100], rel=2e-3)


def test_huber_has_a_gradient_at_no_error() -> None:
    prediction = torch.zeros(1, 1, 1, 1, requires_grad=True)
    x_0 = torch.zeros(1, 1, 1, 1)
    sample_losses(lambda *_: prediction, family("eps"), x_0, x_0, torch.ones(1), None, loss="smooth_l1").backward()
    assert prediction.grad.item() == 0.0


@pytest.mark.parametrize("schedule", ["exponential", "snr"])
@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_scheduled_huber_goes_from_square_to_robust_with_the_noise(prediction: str, schedule: str) -> None:
    family_ = FLOW if prediction == "flow" else Family("eps", stable_diffusion_sigmas().float())
    thresholds = huber_threshold(family_, family_.sigmas, 0.05, schedule)
    assert (thresholds.diff() < 0).all() and 0.9 < thresholds[0] <= 1.0 and thresholds[-1] < 0.07


def test_an_unknown_huber_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'cosine'"):
        huber_threshold(FLOW, FLOW.sigmas, 0.1, "cosine")


def test_a_mask_covers_every_channel_and_frame() -> None:
    shape = (2, 4, 3, 8, 8)
    x_0, noise, error = (torch.randn(shape, generator=tensor_generator(n)) for n in range(3))
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4] = 1.0
    losses = sample_losses(lambda *_: x_0 + error, family("eps"), x_0, noise, torch.ones(2), None, mask=mask)
    assert losses[0] == pytest.approx(float(error[0, :, :, :4].square().mean() / 2), rel=1e-5)
    assert losses[1] == 0.0


def test_a_mask_of_ones_changes_nothing(pair) -> None:
    losses = [
        sample_losses(lambda x_t, *_: 0.5 * x_t, family("eps"), *pair, SIGMAS, None, mask=mask)
        for mask in (None, torch.ones(3, 1, 8, 8))
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_the_model_sees_perturbed_noise(pair, prediction: str) -> None:
    x_0, noise = pair
    seen, sigma = [], sigmas(prediction)
    perturbation = torch.randn(SHAPE, generator=tensor_generator(5))
    args = (family(prediction), x_0, noise, sigma, None)
    sample_losses(lambda x_t, *_: seen.append(x_t) or x_0, *args, perturbation=perturbation)
    torch.testing.assert_close(seen[0], add_noise(family(prediction), x_0, noise + perturbation, sigma))
