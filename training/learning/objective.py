"""Noise, timesteps, targets and weighting: the loss of one batch.

The host's model predicts x_0 for every family. The error of x_0 times sqrt(w(sigma)) is the error in the space the
family itself predicts (noise, velocity), in which it was trained; every loss here is taken in that space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

Predict = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""(x_t (B, ...), sigma (B,), cond) -> x_0 (B, ...)"""

TRAIN_TIMESTEPS = 1000
"""What min_timestep and max_timestep count in; a flow model's timestep is 1000 sigma."""
LAST_ALPHA_BAR = 4.8973451890853435e-08
"""The host's in place of zero terminal SNR's 0, whose sigma would be infinite; this one's is 4518.8."""
LARGEST_SNR = 1000.0
"""Of debiased estimation, as in kohya's trainer."""


@dataclass(frozen=True)
class Family:
    """How a model family noises and predicts."""

    prediction: str
    """eps, v or flow"""
    sigmas: torch.Tensor
    """(T,) noise levels of the training table, ascending"""
    sigma_data: float = 1.0
    """standard deviation of the data in the family's preconditioning"""
    shift: float = 1.0
    """timestep shift the flow model was trained with; 1 = none"""
    patch: int = 2
    """side of an image token, in latent cells"""


# ---------------------------------------------------------------- noise levels


def draw_sigma(
    family: Family,
    generator: torch.Generator,
    density: str = "uniform",
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    shift: float = 1.0,
    min_timestep: int = 0,
    max_timestep: int = TRAIN_TIMESTEPS,
) -> torch.Tensor:
    """One noise level: () float32 on the CPU.

    A time t in [0, 1) is drawn: uniform, or sigmoid(N(logit_mean, logit_std)), then shifted to s t / (1 + (s - 1) t)
    (Esser et al., arXiv:2403.03206, sections 3.1 and 5.3.2). A flow model's sigma is t; the others' is the entry
    floor(t T) of their table. A range of timesteps conditions the density on that range: what lies inside keeps its
    shape, and nothing piles up at the ends. A flow model's first timestep is 1, since at sigma 0 it learns nothing.

    Args:
        density: uniform or logit_normal.
        min_timestep, max_timestep: of 1000; t is from min_timestep / 1000 to max_timestep / 1000.
    """
    if family.prediction == "flow":
        low, high = max(1, min_timestep) / TRAIN_TIMESTEPS, max_timestep / TRAIN_TIMESTEPS
        return _draw_time(generator, low, high, density, logit_mean, logit_std, shift).float()
    steps = len(family.sigmas)
    first, end = min_timestep * steps // TRAIN_TIMESTEPS, math.ceil(max_timestep * steps / TRAIN_TIMESTEPS)
    if density == "uniform" and shift == 1.0:
        index = torch.randint(first, end, (), generator=generator)
    else:
        time = _draw_time(generator, first / steps, end / steps, density, logit_mean, logit_std, shift)
        index = (time * steps).long().clamp(first, end - 1)
    return family.sigmas[index].float()


def density_and_shift(
    family: Family, sampling: str, timestep_shift: float, height: int, width: int
) -> tuple[str, float]:
    """What `draw_sigma` takes as density and shift for a config's timestep_sampling.

    shift: by timestep_shift, or by the model's own where that is 0. resolution_shift: by exp(mu), mu linear in the
    number of image tokens from 0.5 at 256 to 1.15 at 4096, as Flux was trained. auto: shift for flow models, else
    uniform.

    Args:
        height, width: of the latent.
    """
    if sampling == "auto":
        sampling = "shift" if family.prediction == "flow" else "uniform"
    match sampling:
        case "uniform" | "logit_normal":
            return sampling, 1.0
        case "shift":
            return "logit_normal", timestep_shift or family.shift
        case "resolution_shift":
            tokens = height * width / family.patch**2
            mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
            return "logit_normal", math.exp(mu)
    raise ValueError(f"timestep_sampling {sampling!r} is not known")


def zero_terminal_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """The table (T,), ascending, whose last entry is all but pure noise; its first stays as it is.

    Lin et al., arXiv:2305.08891, algorithm 1: sqrt(alpha_bar) is shifted to end at 0 and scaled to begin where it did.
    The last sigma would be infinite: it is the host's 4518.8, as in its ModelSamplingDiscrete node.
    """
    root = (1.0 + sigmas.double().square()).rsqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root.square()
    alpha_bar[-1] = LAST_ALPHA_BAR
    return ((1.0 - alpha_bar) / alpha_bar).sqrt().to(sigmas.dtype)


def _draw_time(
    generator: torch.Generator, low: float, high: float, density: str, mean: float, std: float, shift: float
) -> torch.Tensor:
    """A time within [low, high], by the inverse of its distribution function: () float64."""
    bounds = torch.tensor([low, high], dtype=torch.float64)
    share = bounds / (shift - (shift - 1.0) * bounds)
    if density == "logit_normal":
        share = torch.special.ndtr((share.logit() - mean) / std)
    time = share[0] + (share[1] - share[0]) * torch.rand((), generator=generator, dtype=torch.float64)
    if density == "logit_normal":
        time = (mean + std * torch.special.ndtri(time)).sigmoid()
    return (shift * time / (1.0 + (shift - 1.0) * time)).clamp(low, high)


# ---------------------------------------------------------------- noise


def draw_noise(shape: tuple[int, ...], noise_offset: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise for one sample (C, ...), each channel shifted by noise_offset * N(0, 1).

    The offset is Nicholas Guttenberg's "Diffusion with offset noise" (crosslabs.org, 2023).
    """
    noise = torch.randn(shape, generator=generator)
    if noise_offset:
        channels = (shape[0],) + (1,) * (len(shape) - 1)
        noise = noise + noise_offset * torch.randn(channels, generator=generator)
    return noise


def multires_noise(noise: torch.Tensor, iterations: int, discount: float, generator: torch.Generator) -> torch.Tensor:
    """Pyramid noise: the sum of noise and discount^i times gaussian noise of 1 / r^i its size, at unit deviation.

    i goes from 0 to iterations - 1 and ends before a side would be shorter than 1; r is drawn from [2, 4) for each
    layer, and a layer is scaled up bilinearly. Jonathan Whitaker, "Multi-Resolution Noise for Diffusion Model
    Training" (wandb.ai, 2023), with kohya's count of layers.

    Args:
        noise: of one sample, (C, h, w) or (C, f, h, w); frames have layers of their own.
    """
    height, width = noise.shape[-2:]
    total = noise.reshape(1, -1, height, width)
    for i in range(iterations):
        ratio = (2.0 + 2.0 * torch.rand((), generator=generator).item()) ** i
        size = int(height / ratio), int(width / ratio)
        if min(size) < 1:
            break
        layer = torch.randn(1, total.shape[1], *size, generator=generator)
        total = total + discount**i * F.interpolate(layer, (height, width), mode="bilinear")
    return (total / total.std()).reshape(noise.shape)


def add_noise(family: Family, x_0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t from x_0 (B, ...), noise (B, ...) and sigma (B,)."""
    sigma = _like(sigma, x_0)
    if family.prediction == "flow":
        return (1.0 - sigma) * x_0 + sigma * noise
    return x_0 + sigma * noise


def target_x_0(
    family: Family, x_0: torch.Tensor, sigma: torch.Tensor, perturbation: torch.Tensor | None
) -> torch.Tensor:
    """The x_0 (B, ...) that stands for the clean noise's eps or v, seen from a perturbed x_t.

    Input perturbation (Ning et al., arXiv:2301.11706): the model sees noise + gamma n' and still predicts the noise.
    x_0 is skip(sigma) x_t less a multiple of that prediction, so it moves by skip(sigma) (x_t' - x_t).

    Args:
        perturbation: (B, ...) gamma n', what the noise in x_t' has more.
    """
    if perturbation is None:
        return x_0
    skip = torch.ones_like(sigma)
    if family.prediction == "v":
        skip = family.sigma_data**2 / (sigma.square() + family.sigma_data**2)
    return x_0 + _like(skip * sigma, x_0) * perturbation


# ---------------------------------------------------------------- loss


def space_weight(family: Family, sigma: torch.Tensor) -> torch.Tensor:
    """w(sigma), (B,) float64: w * (error of x_0)^2 is the squared error in the family's own prediction space.

    eps: x_0 error = sigma * eps error. v: Salimans and Ho, arXiv:2202.00512, in the form of
    Karras et al., arXiv:2206.00364. flow (v = noise - x_0): x_0 error = sigma * v error.
    """
    variance = _exact(sigma).square()
    if family.prediction == "v":
        data = family.sigma_data**2
        return (variance + data) / (variance * data)
    return 1.0 / variance


def snr_weight(
    family: Family, sigma: torch.Tensor, min_snr_gamma: float = 0.0, debiased_estimation: bool = False
) -> torch.Tensor:
    """What the loss in the family's own space is multiplied by at each noise level, (B,) float64; 1 for flow models.

    Min-SNR-gamma (Hang et al., arXiv:2303.09556, section 3.4): min(SNR, gamma) / SNR for eps,
    min(SNR, gamma) / (SNR + 1) for v. Debiased estimation (Yu et al., arXiv:2310.08442): 1 / sqrt(SNR) for eps and,
    as in kohya's trainer, 1 / (SNR + 1) for v, with SNR at most 1000.
    """
    snr = 1.0 / _exact(sigma).square()
    weight = torch.ones_like(snr)
    if family.prediction == "flow":
        return weight
    is_v = family.prediction == "v"
    if min_snr_gamma:
        weight = weight * snr.clamp(max=min_snr_gamma) / (snr + 1.0 if is_v else snr)
    if debiased_estimation:
        snr = snr.clamp(max=LARGEST_SNR)
        weight = weight / (snr + 1.0 if is_v else snr.sqrt())
    return weight


def loss_weight(
    family: Family, sigma: torch.Tensor, min_snr_gamma: float = 0.0, debiased_estimation: bool = False
) -> torch.Tensor:
    """`space_weight` times `snr_weight`, (B,) float32: what the mean squared error of x_0 is multiplied by."""
    return (space_weight(family, sigma) * snr_weight(family, sigma, min_snr_gamma, debiased_estimation)).float()


def huber_threshold(family: Family, sigma: torch.Tensor, huber_c: float, schedule: str) -> torch.Tensor:
    """Where a pseudo-Huber loss turns from square to linear at each noise level: (B,) float64.

    Khrapov et al., "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss",
    arXiv:2403.16728, as in kohya's trainer. constant: c. exponential: c^(t / T), from 1 down to c over the timesteps.
    snr: (1 - c) / (1 + 1 / sqrt(SNR))^2 + c, from 1 down to c over the noise.
    """
    sigma = _exact(sigma)
    is_flow = family.prediction == "flow"
    match schedule:
        case "constant":
            return torch.full_like(sigma, huber_c)
        case "exponential":
            table = family.sigmas.to(sigma)
            time = sigma if is_flow else torch.searchsorted(table, sigma) / len(table)
            return huber_c**time
        case "snr":
            noise_to_signal = sigma / (1.0 - sigma) if is_flow else sigma
            return (1.0 - huber_c) / (1.0 + noise_to_signal).square() + huber_c
    raise ValueError(f"huber_schedule {schedule!r} is not known")


def pseudo_huber(square: torch.Tensor, threshold: torch.Tensor, loss: str) -> torch.Tensor:
    """The loss of each element from its squared error d^2 (B, ...) and c (B,), in kohya's scale.

    huber: 2 c (sqrt(d^2 + c^2) - c), near 0 the square. smooth_l1: 2 (sqrt(d^2 + c^2) - c), far off twice |d|
    (Charbonnier et al., 1994).
    """
    c = _like(threshold.to(square.dtype), square)
    smooth_l1 = 2.0 * square / ((square + c.square()).sqrt() + c)  # the difference of roots without its cancellation
    return c * smooth_l1 if loss == "huber" else smooth_l1


def sample_losses(
    predict: Predict,
    family: Family,
    x_0: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    cond: Any,
    min_snr_gamma: float = 0.0,
    debiased_estimation: bool = False,
    loss: str = "l2",
    huber_c: float = 0.1,
    huber_schedule: str = "constant",
    mask: torch.Tensor | None = None,
    perturbation: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weighted loss of each sample: (B,) float32, with gradients to the adapters.

    Args:
        x_0, noise: (B, C, ...) float32; sigma: (B,) float32.
        cond: what `predict` takes for this batch.
        loss: l2, huber or smooth_l1.
        mask: (B, 1, h, w) in [0, 1]: each element's loss is multiplied by it, and the mean stays that of all elements.
        perturbation: (B, C, ...) what input perturbation adds to the noise in x_t.
    """
    x_t = add_noise(family, x_0, noise if perturbation is None else noise + perturbation, sigma)
    error = predict(x_t, sigma, cond).float() - target_x_0(family, x_0, sigma, perturbation)
    losses = error.square()
    if loss == "l2":
        weight = loss_weight(family, sigma, min_snr_gamma, debiased_estimation)
    else:
        square = losses * _like(space_weight(family, sigma).float(), losses)
        losses = pseudo_huber(square, huber_threshold(family, sigma, huber_c, huber_schedule), loss)
        weight = snr_weight(family, sigma, min_snr_gamma, debiased_estimation).float()
    if mask is not None:
        losses = losses * mask.reshape(len(mask), *(1,) * (losses.dim() - 3), *mask.shape[-2:])
    return losses.flatten(1).mean(1) * weight


def _exact(sigma: torch.Tensor) -> torch.Tensor:
    """In float64, which Apple's GPUs do not have: there in float32."""
    return sigma.float() if sigma.device.type == "mps" else sigma.double()


def _like(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return sigma.reshape(-1, *(1,) * (x.dim() - 1))
