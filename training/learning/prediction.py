"""How a model mixes latents with noise and what its network predicts: one small class a parametrisation.

x_0 is a clean latent, n unit noise and sigma the noise level, as in Karras et al., arXiv:2206.00364. The network's
output F gives x_0 = c_skip x_t + c_out F. The trainer's models return x_0, and the loss is taken in the space of F, in
which the model was trained.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from .timesteps import TIMESTEPS, Density


@dataclass(frozen=True, eq=False)
class Prediction(ABC):
    """A parametrisation of the network's output; each subclass is one row of PREDICTIONS."""

    sigmas: Tensor
    """(T,) noise levels of the model's training table, ascending"""
    sigma_data: float = 1.0
    """standard deviation of the data in the model's preconditioning"""

    name: ClassVar[str]
    """in reports and files"""
    modelspec_name: ClassVar[str | None] = None
    """in modelspec.prediction_type; None: ModelSpec has no name for it"""
    usual_sampling: ClassVar[str] = "uniform"
    """the timestep_sampling that `auto` stands for"""
    has_snr_weights: ClassVar[bool] = True
    """whether Min-SNR-gamma and debiased estimation have an effect"""
    takes_zero_terminal_snr: ClassVar[bool] = False
    """whether its table of noise levels may be rescaled to zero terminal SNR"""

    # ---------------------------------------------------------------- noise and output

    def add_noise(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x_t = x_0 + sigma n, from x_0 (B, ...), noise (B, ...) and sigma (B,)."""
        return x_0 + along_samples(sigma, x_0) * noise

    def noise_to_signal(self, sigma: Tensor) -> Tensor:
        """Ratio of the standard deviations of noise and signal in x_t, 1 / sqrt(SNR): (B,)."""
        return sigma

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Factor on x_t in x_0 = c_skip x_t + c_out F: (B,)."""
        return torch.ones_like(sigma)

    # ---------------------------------------------------------------- weights

    @abstractmethod
    def space_weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2, by which the squared error of x_0 becomes that of F: (B,) float64."""

    @abstractmethod
    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        """Factor on the loss of F by Min-SNR-gamma (Hang et al., arXiv:2303.09556, section 3.4): (B,)."""

    @abstractmethod
    def debiased_weight(self, snr: Tensor) -> Tensor:
        """Factor on the loss of F by debiased estimation (Yu et al., arXiv:2310.08442), as in kohya's trainer: (B,)."""

    # ---------------------------------------------------------------- times

    def time(self, sigma: Tensor) -> Tensor:
        """Position of each noise level in the training, from 0 (clean) to 1 (noise): (B,)."""
        table = self.sigmas.to(sigma)
        return torch.searchsorted(table, sigma) / len(table)

    def sigma_at(self, time: float) -> float:
        """The noise level at a time from 0 to below 1."""
        return float(self.sigmas[int(time * len(self.sigmas))])

    def draw_sigma(self, density: Density, generator: torch.Generator) -> Tensor:
        """One noise level: the entry floor(t T) of the table for a time t of the density; () float32 on the CPU."""
        steps = len(self.sigmas)
        first = density.min_timestep * steps // TIMESTEPS
        end = math.ceil(density.max_timestep * steps / TIMESTEPS)
        if density.is_even:
            index = torch.randint(first, end, (), generator=generator)
        else:
            index = (density.draw_time(first / steps, end / steps, generator) * steps).long().clamp(first, end - 1)
        return self.sigmas[index].float()


class Eps(Prediction):
    """F is the noise: c_skip = 1, c_out = -sigma (Ho et al., arXiv:2006.11239)."""

    name = "eps"
    modelspec_name = "epsilon"

    def space_weight(self, sigma: Tensor) -> Tensor:
        return 1.0 / in_float64(sigma).square()

    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma) / snr

    def debiased_weight(self, snr: Tensor) -> Tensor:
        return 1.0 / snr.sqrt()


class V(Prediction):
    """F is the velocity of Salimans and Ho, arXiv:2202.00512, in the form of Karras et al.

    c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = -sigma sigma_data / sqrt(sigma^2 + sigma_data^2).
    """

    name = "v"
    modelspec_name = "v"
    takes_zero_terminal_snr = True

    def c_skip(self, sigma: Tensor) -> Tensor:
        return self.sigma_data**2 / (sigma.square() + self.sigma_data**2)

    def space_weight(self, sigma: Tensor) -> Tensor:
        variance, data = in_float64(sigma).square(), self.sigma_data**2
        return (variance + data) / (variance * data)

    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma) / (snr + 1.0)

    def debiased_weight(self, snr: Tensor) -> Tensor:
        return 1.0 / (snr + 1.0)


class Flow(Prediction):
    """F is the velocity n - x_0 of a straight path from data to noise (Liu et al., arXiv:2209.03003).

    x_t = (1 - sigma) x_0 + sigma n, so c_skip = 1, c_out = -sigma; the time is sigma.
    """

    name = "flow"
    usual_sampling = "shift"
    has_snr_weights = False

    def add_noise(self, x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        sigma = along_samples(sigma, x_0)
        return (1.0 - sigma) * x_0 + sigma * noise

    def noise_to_signal(self, sigma: Tensor) -> Tensor:
        return sigma / (1.0 - sigma)

    def space_weight(self, sigma: Tensor) -> Tensor:
        return 1.0 / in_float64(sigma).square()

    def min_snr_weight(self, snr: Tensor, gamma: float) -> Tensor:
        return torch.ones_like(snr)

    def debiased_weight(self, snr: Tensor) -> Tensor:
        return torch.ones_like(snr)

    def time(self, sigma: Tensor) -> Tensor:
        return sigma

    def sigma_at(self, time: float) -> float:
        return time

    def draw_sigma(self, density: Density, generator: torch.Generator) -> Tensor:
        """One noise level, which is a time of the density: () float32 on the CPU.

        The first timestep is 1: at sigma 0 there is no noise to learn from.
        """
        first, end = max(1, density.min_timestep) / TIMESTEPS, density.max_timestep / TIMESTEPS
        return density.draw_time(first, end, generator).float()


PREDICTIONS: dict[str, type[Prediction]] = {each.name: each for each in (Eps, V, Flow)}
"""By name."""


def in_float64(sigma: Tensor) -> Tensor:
    """float64, or float32 on a device that has no float64."""
    return sigma.double() if has_float64(sigma.device) else sigma.float()


@cache
def has_float64(device: torch.device) -> bool:
    """Whether the device computes float64: Apple's GPUs and some of Intel's do not."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def along_samples(values: Tensor, x: Tensor) -> Tensor:
    """One value a sample (B,), shaped (B, 1, ...) to be multiplied with x (B, ...)."""
    return values.reshape(-1, *(1,) * (x.dim() - 1))
