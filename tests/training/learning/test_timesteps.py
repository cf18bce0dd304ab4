"""Training times and noise levels: their densities, and zero terminal SNR."""

import math
from statistics import NormalDist

import comfy.model_sampling
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from lora_kiln.training.basics.randomness import tensor_generator
from lora_kiln.training.learning.objective import loss_weight
from lora_kiln.training.learning.prediction import Eps, Flow, Prediction
from lora_kiln.training.learning.timesteps import Density, zero_terminal_sigmas

MANY = 4000
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHAS_BAR = (1 - BETAS).cumprod(0)
"""Stable Diffusion's"""
FLOW = Flow(torch.linspace(0.001, 1.0, 1000))
DISCRETE = Eps(torch.arange(1000.0))
KS_LIMIT = 1.63 / MANY**0.5
"""At 1 % significance."""


def stable_diffusion_sigmas() -> torch.Tensor:
    return ((1 - ALPHAS_BAR) / ALPHAS_BAR).sqrt()


def test_noise_levels_are_drawn_evenly_from_the_table() -> None:
    counts = torch.bincount(drawn(Eps(torch.arange(10.0))).long(), minlength=10)
    assert len(counts) == 10
    assert ((counts - MANY / 10).abs() < 5 * (MANY * 0.09) ** 0.5).all()


def drawn(prediction: Prediction, *args, **kwargs) -> torch.Tensor:
    density = Density(*args, **kwargs)
    return torch.stack([prediction.draw_sigma(density, tensor_generator(n, "sigma")) for n in range(MANY)])


def distance(samples: torch.Tensor, cdf) -> float:
    """Kolmogorov and Smirnov's, to a distribution function."""
    ranked = samples.double().sort().values
    expected = torch.tensor([cdf(value) for value in ranked.tolist()], dtype=torch.float64)
    rank = torch.arange(1, len(ranked) + 1) / len(ranked)
    return float((rank - expected).abs().max())


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
    table = Eps(torch.arange(float(length)))
    samples = drawn(table, min_timestep=500, max_timestep=600)
    assert samples.min() == length // 2 and samples.max() == length * 6 // 10 - 1


def test_logit_normal_timesteps_of_a_table_are_floors_of_the_times() -> None:
    cdf = logit_normal_cdf(0.3, 0.8, 1.0)
    assert distance(drawn(DISCRETE, "logit_normal", 0.3, 0.8), lambda index: cdf((index + 1) / 1000)) < KS_LIMIT


def test_the_whole_table_is_drawn_as_ever() -> None:
    expected = torch.randint(0, 1000, (), generator=tensor_generator(7, "sigma"))
    assert DISCRETE.draw_sigma(Density(), tensor_generator(7, "sigma")) == expected


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
