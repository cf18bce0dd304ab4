"""What a checkpoint says of the run up to it, beside what learns."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ..basics.numbers import is_finite
from ..model.state import Damaged
from .checkpoints import State
from .controls import HIGHEST_FACTOR

LOSSES, BEST = "losses", "best:"


@dataclass(frozen=True)
class Past:
    """How a run went so far."""

    losses: list[float]
    """of every step"""
    elapsed: float
    """seconds"""
    rate_changes: list[tuple[int, float]]
    """(step, what the recipe's learning rate is multiplied by from it on)"""
    sample_prompts: tuple[str, ...]
    validations: list[tuple[int, float]]
    """(step, loss)"""
    is_over: bool
    looked_at: int
    """the last step at whose end all was done that was due there"""
    best: dict[str, torch.Tensor]
    """the LoRA of the best validation, where it is kept"""
    steps_back: int
    """times the run went back to an earlier checkpoint"""

    def put_into(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> State:
        """A checkpoint that holds this beside what else is given."""
        plain = dict(vars(self))
        tensors = {**tensors, LOSSES: torch.tensor(plain.pop("losses"), dtype=torch.float64)}
        tensors |= {f"{BEST}{name}": tensor for name, tensor in plain.pop("best").items()}
        return State(len(self.losses), tensors, {**facts, **plain, "sample_prompts": list(self.sample_prompts)})


def past_of(state: State) -> Past:
    """What `Past.put_into` put into a checkpoint.

    Raises:
        Damaged: something is missing, or is not what a run writes.
    """
    facts = state.facts
    try:
        past = Past(
            losses=state.tensors[LOSSES].tolist(),
            elapsed=float(facts["elapsed"]),
            rate_changes=[(int(step), float(factor)) for step, factor in facts["rate_changes"]],
            sample_prompts=tuple(facts["sample_prompts"]),
            validations=[(int(step), float(loss)) for step, loss in facts["validations"]],
            is_over=facts["is_over"],
            looked_at=facts["looked_at"],
            best={key.removeprefix(BEST): each for key, each in state.tensors.items() if key.startswith(BEST)},
            steps_back=facts["steps_back"],
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"the checkpoint does not say how the run went: {error!r}") from error
    is_right = {
        "losses": isinstance(past.losses, list) and len(past.losses) == state.step,
        "elapsed": is_finite(past.elapsed) and past.elapsed >= 0,
        "rate_changes": all(step >= 0 and 0 < factor <= HIGHEST_FACTOR for step, factor in past.rate_changes),
        "sample_prompts": all(isinstance(text, str) for text in past.sample_prompts),
        "validations": all(step >= 0 and not math.isnan(loss) for step, loss in past.validations),
        "is_over": isinstance(past.is_over, bool),
        "looked_at": type(past.looked_at) is int and past.looked_at >= 0,
        "steps_back": type(past.steps_back) is int and past.steps_back >= 0,
    }
    if wrong := [name for name, right in is_right.items() if not right]:
        raise Damaged(f"the checkpoint holds no {', '.join(wrong)} of a run of {state.step} steps")
    return past


@dataclass
class Validations:
    """What validation has found so far."""

    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss)"""
    patience: int = 0
    """times without a better loss after which training ends; 0 = never"""

    @property
    def best(self) -> tuple[int, float] | None:
        """The (step, loss) of the lowest; the first of them."""
        return min(self.losses, key=lambda each: each[1]) if self.losses else None

    def add(self, step: int, loss: float) -> bool:
        """Takes one more; gives whether it is the best so far."""
        is_best = math.isfinite(loss) and (self.best is None or loss < self.best[1])
        self.losses.append((step, loss if math.isfinite(loss) else math.inf))
        return is_best

    @property
    def is_over(self) -> bool:
        """Whether patience is at its end."""
        best = self.best
        return bool(self.patience and best and sum(step > best[0] for step, _ in self.losses) >= self.patience)
