"""Learning-rate schedules as pure functions of the step."""

import math

from ..config import OptimizationConfig


def learning_rate_factor(optimization: OptimizationConfig, step: int, total_steps: int) -> float:
    """The factor on the peak learning rate at a step.

    After a linear warm-up, with p from 0 to 1 over the rest of the run:
    constant 1; linear 1 - p; cosine (1 + cos(pi p)) / 2; cosine_with_restarts the same scheduler_cycles times, each
    from the peak (Loshchilov and Hutter, arXiv:1608.03983, without growing cycles); polynomial
    (1 - p)^scheduler_power; rex (1 - p) / (1 - p / 2) (Chen et al., arXiv:2107.04197).

    Args:
        step: optimizer steps done; the first step, 0, has a rate above zero.
        total_steps: length of the run.
    """
    warmup_steps = optimization.warmup_steps(total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    progress = min(1.0, progress)
    match optimization.scheduler:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            cycle = optimization.scheduler_cycles * progress % 1.0
            return 0.5 * (1.0 + math.cos(math.pi * cycle)) if progress < 1.0 else 0.0
        case "polynomial":
            return (1.0 - progress) ** optimization.scheduler_power
        case "rex":
            return (1.0 - progress) / (1.0 - 0.5 * progress)
    raise ValueError(f"scheduler {optimization.scheduler!r} is not known")
