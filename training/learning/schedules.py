"""Learning-rate schedules as pure functions of the step."""

import math

from ..config import LoRAConfig


def learning_rate_factor(config: LoRAConfig, step: int, total_steps: int) -> float:
    """What the peak learning rate is multiplied by at a step.

    After a linear warm-up, with p from 0 to 1 over the rest of the run:
    constant 1; linear 1 - p; cosine (1 + cos(pi p)) / 2; cosine_with_restarts the same scheduler_cycles times, each
    from the peak (Loshchilov and Hutter, arXiv:1608.03983, without growing cycles); polynomial
    (1 - p)^scheduler_power; rex (1 - p) / (1 - p / 2) (Chen et al., arXiv:2107.04197).

    Args:
        step: optimizer steps already taken, 0 at the first, which already moves.
        total_steps: length of the run.
    """
    warmup_steps = config.optimization.warmup_steps(total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    progress = min(1.0, progress)
    match config.optimization.scheduler:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            cycle = config.optimization.scheduler_cycles * progress % 1.0
            return 0.5 * (1.0 + math.cos(math.pi * cycle)) if progress < 1.0 else 0.0
        case "polynomial":
            return (1.0 - progress) ** config.optimization.scheduler_power
        case "rex":
            return (1.0 - progress) / (1.0 - 0.5 * progress)
    raise ValueError(f"scheduler {config.optimization.scheduler!r} is not known")
