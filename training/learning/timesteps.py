"""Timesteps: the density that training times are drawn from, and the noise levels of zero terminal SNR."""

from dataclasses import dataclass

import torch
from torch import Tensor

TIMESTEPS = 1000
"""Unit of min_timestep and max_timestep, whatever the length of the model's table; a flow model's are 1000 sigma."""
LAST_ALPHA_BAR = 4.8973451890853435e-08
"""ComfyUI's in place of zero terminal SNR's 0, whose sigma would be infinite; that of this one is 4518.8."""


@dataclass(frozen=True)
class Density:
    """A distribution of training times t from 0 to 1.

    A time is uniform or sigmoid(N(logit_mean, logit_std)), then shifted to s t / (1 + (s - 1) t) (Esser et al.,
    arXiv:2403.03206, sections 3.1 and 5.3.2), and conditioned on a range of timesteps, which the prediction turns
    into times: within the range the density keeps its shape, and nothing piles up at the ends.
    """

    shape: str = "uniform"
    """uniform or logit_normal"""
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 1.0
    min_timestep: int = 0
    max_timestep: int = TIMESTEPS

    @property
    def is_even(self) -> bool:
        """Whether all times of the range are equally likely."""
        return self.shape == "uniform" and self.shift == 1.0

    def draw_time(self, low: float, high: float, generator: torch.Generator) -> Tensor:
        """A time within [low, high], by the inverse of the cumulative distribution function: () float64."""
        shift = self.shift
        bounds = torch.tensor([low, high], dtype=torch.float64)
        share = bounds / (shift - (shift - 1.0) * bounds)
        if self.shape == "logit_normal":
            share = torch.special.ndtr((share.logit() - self.logit_mean) / self.logit_std)
        time = share[0] + (share[1] - share[0]) * torch.rand((), generator=generator, dtype=torch.float64)
        if self.shape == "logit_normal":
            time = (self.logit_mean + self.logit_std * torch.special.ndtri(time)).sigmoid()
        return (shift * time / (1.0 + (shift - 1.0) * time)).clamp(low, high)


def zero_terminal_sigmas(sigmas: Tensor) -> Tensor:
    """The table (T,), ascending, rescaled so that its last level is nearly pure noise; its first level is unchanged.

    Lin et al., arXiv:2305.08891, algorithm 1: sqrt(alpha_bar) is shifted to end at 0 and scaled to begin where it did.
    The last sigma would be infinite: it is 4518.8, as in ComfyUI's ModelSamplingDiscrete node.
    """
    root = (1.0 + sigmas.double().square()).rsqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root.square()
    alpha_bar[-1] = LAST_ALPHA_BAR
    return ((1.0 - alpha_bar) / alpha_bar).sqrt().to(sigmas.dtype)
