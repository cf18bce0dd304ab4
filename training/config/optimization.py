"""The settings of the optimization: optimizer, learning rates and their schedule, length of the run, batches."""

from dataclasses import dataclass
from math import inf

from ..basics.numbers import Limits
from ..basics.settings import Settings, choice, number
from .optimizers import OPTIMIZERS, OptimizerKind

SCHEDULERS = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex")
LOWEST_RATE_FACTOR = 0.1
"""Least learning_rate for an optimizer that finds the rate itself."""


@dataclass(frozen=True)
class OptimizationConfig(Settings):
    """How the adapters' parameters are updated, with which batches and for how long."""

    subject = "LoRA Config"

    text_encoder_learning_rate: float = number(0.0, Limits(0, 10))
    """Peak learning rate of adapters on the text encoders; 0 = the text encoders are not trained."""
    optimizer: str = choice("adamw", OPTIMIZERS)
    """A key of OPTIMIZERS."""
    optimizer_args: str = ""
    """Further arguments of the optimizer, as in `betas=0.9,0.99 eps=1e-8`."""
    learning_rate: float = number(1e-4, Limits(0, 10, excluded=0, offered_from=1e-8))
    """Peak learning rate, reached after the warm-up."""
    weight_decay: float = number(0.01, Limits(0, 10))
    """Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""
    scheduler: str = choice("cosine", SCHEDULERS)
    """Course of the learning rate after the warm-up."""
    warmup: float = number(0.0, Limits(0, inf, offered_to=1_000_000))
    """Below 1: share of all steps; from 1 on: number of steps."""
    scheduler_cycles: int = number(3, Limits(1, 1000))
    """Cycles of cosine_with_restarts."""
    scheduler_power: float = number(2.0, Limits(0, 10, excluded=0, offered_from=0.01))
    """Power of polynomial."""
    steps: int = number(1500, Limits(1, 1_000_000))
    """Optimizer steps; ignored where epochs is above 0."""
    epochs: int = number(0, Limits(0, 100_000))
    """Passes over the data, repeats included; 0 = use steps."""
    batch_size: int = number(1, Limits(1, 512))
    """Pictures in one forward pass."""
    gradient_accumulation: int = number(1, Limits(1, 1024))
    """Forward passes whose gradients are averaged for one optimizer step."""
    max_grad_norm: float = number(1.0, Limits(0, inf, offered_to=1000))
    """Gradients are scaled down to this total norm; 0 = off."""
    ema_decay: float = number(0.0, Limits(0, 1, excluded=1, offered_to=0.99999))
    """Decay of the exponential moving average that the LoRA is saved as; 0 = off, 0.99 to 0.9999 when used."""

    def numbers(self) -> dict[str, float]:
        """The values whose limits are checked: without steps where epochs is set."""
        return {name: value for name, value in super().numbers().items() if name != "steps" or self.epochs == 0}

    def more_problems(self) -> list[str]:
        if not self.has_finite_numbers:
            return []
        problems = []
        kind = OPTIMIZERS[self.optimizer] if self.optimizer in tuple(OPTIMIZERS) else None
        if kind and kind.finds_rate and self.learning_rate < LOWEST_RATE_FACTOR:
            problems.append(
                f"learning_rate is {self.learning_rate:g} with {kind.name}, which finds the rate itself and multiplies "
                f"it by this: nothing would be learned. Set learning_rate to {kind.rates.usual}."
            )
        if kind and kind.averages_weights and self.ema_decay:
            problems.append(f"ema_decay is on with {kind.name}, which averages by itself: set ema_decay to 0.")
        if self.epochs == 0 and self.warmup >= 1 and self.warmup >= self.steps >= 1:
            problems.append(
                f"warmup is {self.warmup:g} steps of {self.steps}: it must end before the run does. "
                "Lower warmup (values below 1 are a share of the run) or raise steps."
            )
        return problems

    @property
    def optimizer_kind(self) -> OptimizerKind:
        """The optimizer's row in OPTIMIZERS.

        Raises:
            ValueError: there is no such row any more.
        """
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is not known")
        return OPTIMIZERS[self.optimizer]

    @property
    def trains_text_encoders(self) -> bool:
        """Whether the text encoders are trained too."""
        return self.text_encoder_learning_rate > 0

    def warmup_steps(self, total_steps: int) -> int:
        """Length of the warm-up in optimizer steps."""
        return int(self.warmup if self.warmup >= 1 else round(self.warmup * total_steps))
