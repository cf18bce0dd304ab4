"""Noise, timesteps, targets and weighting: the loss of one batch.

The host's model predicts x_0 for every family. The squared error of x_0 is weighted so that it equals the
error in the space the family itself predicts (noise, velocity), which is the loss the family was trained with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Predict = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""(x_t (B, ...), sigma (B,), cond) -> x_0 (B, ...)"""


@dataclass(frozen=True)
class Family:
    """How a model family noises and predicts."""

    prediction: str
    """eps, v or flow"""
    sigmas: torch.Tensor
    """(T,) noise levels of the training table, ascending"""
    sigma_data: float = 1.0
    """standard deviation of the data in the family's preconditioning"""


def draw_sigma(family: Family, generator: torch.Generator) -> torch.Tensor:
    """One noise level, uniform over the family's table: () float32 on the CPU."""
    index = torch.randint(0, len(family.sigmas), (), generator=generator)
    return family.sigmas[index].float()


def draw_noise(shape: tuple[int, ...], noise_offset: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise for one sample (C, ...), each channel shifted by noise_offset * N(0, 1).

    The offset is Nicholas Guttenberg's "Diffusion with offset noise" (crosslabs.org, 2023).
    """
    noise = torch.randn(shape, generator=generator)
    if noise_offset:
        channels = (shape[0],) + (1,) * (len(shape) - 1)
        noise = noise + noise_offset * torch.randn(channels, generator=generator)
    return noise


def add_noise(family: Family, x_0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x_t from x_0 (B, ...), noise (B, ...) and sigma (B,)."""
    sigma = _like(sigma, x_0)
    if family.prediction == "flow":
        return (1.0 - sigma) * x_0 + sigma * noise
    return x_0 + sigma * noise


def loss_weight(family: Family, sigma: torch.Tensor, min_snr_gamma: float = 0.0) -> torch.Tensor:
    """w(sigma), shape (B,): w * MSE(x_0) is the MSE in the family's own prediction space.

    eps: x_0 error = sigma * eps error. v: Salimans and Ho, arXiv:2202.00512, in the form of
    Karras et al., arXiv:2206.00364. flow (v = noise - x_0): x_0 error = sigma * v error.
    Min-SNR-gamma (Hang et al., arXiv:2303.09556, section 3.4) multiplies by min(SNR, gamma) / SNR for eps
    and by min(SNR, gamma) / (SNR + 1) for v.
    """
    sigma = sigma.double()
    variance = sigma.square()
    if family.prediction == "v":
        data = family.sigma_data**2
        weight = (variance + data) / (variance * data)
    else:
        weight = 1.0 / variance
    if min_snr_gamma and family.prediction in ("eps", "v"):
        snr = 1.0 / variance
        denominator = snr + 1.0 if family.prediction == "v" else snr
        weight = weight * snr.clamp(max=min_snr_gamma) / denominator
    return weight.float()


def sample_losses(
    predict: Predict,
    family: Family,
    x_0: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    cond: Any,
    min_snr_gamma: float = 0.0,
) -> torch.Tensor:
    """The weighted loss of each sample: (B,) float32, with gradients to the adapters.

    Args:
        x_0, noise: (B, C, ...) float32; sigma: (B,) float32.
        cond: what `predict` takes for this batch.
    """
    x_t = add_noise(family, x_0, noise, sigma)
    error = (predict(x_t, sigma, cond).float() - x_0).square().flatten(1).mean(1)
    return error * loss_weight(family, sigma, min_snr_gamma)


def _like(sigma: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return sigma.reshape(-1, *(1,) * (x.dim() - 1))
