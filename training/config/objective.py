"""The settings of the objective: noise, timesteps, loss and its weighting."""

from dataclasses import dataclass
from math import inf

from ..basics.numbers import Limits
from ..basics.settings import Settings, choice, number

LOSSES = ("l2", "huber", "smooth_l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
TIMESTEP_SAMPLINGS = ("auto", "uniform", "logit_normal", "shift", "resolution_shift")


@dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """The loss that is minimised, and the noise and timesteps of its samples."""

    subject = "LoRA Config"

    min_snr_gamma: float = number(0.0, Limits(0, inf, offered_to=100))
    """Min-SNR-gamma loss weighting (Hang et al., arXiv:2303.09556); 0 = off, 5 when used."""
    debiased_estimation: bool = False
    """Weight the loss by 1 / sqrt(SNR) (Yu et al., arXiv:2310.08442)."""
    loss: str = choice("l2", LOSSES)
    """The loss of each element of the prediction."""
    huber_c: float = number(0.1, Limits(0, 10, excluded=0, offered_from=1e-4))
    """Error at which huber and smooth_l1 turn from square to linear, in standard deviations of the prediction."""
    huber_schedule: str = choice("snr", HUBER_SCHEDULES)
    """How that error changes with the noise level."""
    noise_offset: float = number(0.0, Limits(0, 1))
    """Per-channel shift of the noise, in standard deviations; 0 = off."""
    multires_noise_iterations: int = number(0, Limits(0, 16))
    """Layers of coarser noise added to the noise; 0 = off, 6 to 10 when used."""
    multires_noise_discount: float = number(0.3, Limits(0, 1))
    """Strength of each coarser layer relative to the one before."""
    ip_noise_gamma: float = number(0.0, Limits(0, 1))
    """Input perturbation (Ning et al., arXiv:2301.11706); 0 = off, 0.1 when used."""
    zero_terminal_snr: bool = False
    """Train as if the last timestep were pure noise (Lin et al., arXiv:2305.08891); for v-prediction models."""
    min_timestep: int = number(0, Limits(0, 999))
    """First timestep trained, of 1000."""
    max_timestep: int = number(1000, Limits(1, 1000))
    """Timestep before which training ends, of 1000."""
    timestep_sampling: str = choice("auto", TIMESTEP_SAMPLINGS)
    """Density of the timesteps. auto: uniform for SD1.5 and SDXL, shift for flow models."""
    logit_mean: float = number(0.0, Limits(-10, 10))
    """Mean of the normal distribution of logit_normal, shift and resolution_shift."""
    logit_std: float = number(1.0, Limits(0, 10, excluded=0, offered_from=0.01))
    """Standard deviation of that distribution."""
    timestep_shift: float = number(0.0, Limits(0, 100))
    """Shift of the density `shift`, for flow models (discrete_flow_shift in kohya's trainer); 0 = the model's own."""

    def more_problems(self) -> list[str]:
        if not self.has_finite_numbers:
            return []
        problems = []
        if self.min_timestep >= self.max_timestep:
            problems.append(
                f"min_timestep is {self.min_timestep} and max_timestep is {self.max_timestep}; "
                "the first must be below the second; 0 and 1000 train all of them."
            )
        if self.min_snr_gamma and self.debiased_estimation:
            problems.append("min_snr_gamma and debiased_estimation are both on: both weight by noise, choose one.")
        return problems
