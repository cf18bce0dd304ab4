"""Learning-rate schedules as pure functions of the step."""

import math


def learning_rate_factor(scheduler: str, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """What the peak learning rate is multiplied by at a step.

    Args:
        scheduler: constant, linear, cosine, cosine_with_restarts (3 cycles) or polynomial (power 2).
        step: optimizer steps already taken, 0 at the first.
        total_steps: length of the run.
        warmup_steps: steps of linear rise; the first step already moves.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    progress = min(1.0, progress)
    match scheduler:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            return 0.5 * (1.0 + math.cos(math.pi * (3.0 * progress % 1.0))) if progress < 1.0 else 0.0
        case "polynomial":
            return (1.0 - progress) ** 2
    raise ValueError(f"scheduler {scheduler!r} is not known")
