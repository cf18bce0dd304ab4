"""What a checkpoint says of the run up to it, beside what learns."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from .checkpoints import Damaged, State
from .controls import HIGHEST_FACTOR
from .numbers import is_finite

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
