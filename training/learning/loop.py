"""The training loop."""

from collections.abc import Callable

from ..config import OptimizationConfig
from .batches import Batch
from .engine import Engine
from .optimizers import set_learning_rates
from .outcomes import Diverged, Outcomes, reported
from .schedules import learning_rate_factor

__all__ = ["Diverged", "train"]


def train(
    engine: Engine,
    batch_at: Callable[[int, int], Batch],
    optimization: OptimizationConfig,
    steps: int,
    on_step: Callable[[int, float, float], None],
    *,
    start: int = 0,
    rate_factor_at: Callable[[int], float] = lambda step: 1.0,
    pauses_at: Callable[[int], bool] = lambda step: False,
    on_pause: Callable[[int], bool | None] = lambda step: None,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Trains the parameters of the engine's step.

    Args:
        batch_at: the batch of (step, forward pass within the step); its condition may carry a graph. An exception
            ends the run.
        steps: length of the run.
        on_step: called with (steps done, loss, the model's learning rate) after every step, on a GPU some steps later.
            An exception ends the run.
        start: steps done before, which are not repeated.
        rate_factor_at: factor on the schedule's learning rate at a step.
        pauses_at: whether `on_pause` is called after so many steps; asked once a step.
        on_pause: called with the steps done, all of them reported to `on_step`; True ends the run. An exception ends
            it too.
        say: called with a sentence where the loop is slower than it could be.

    Raises:
        Diverged: the loss or a gradient is not finite; the parameters are those before that step.
    """
    optimizer = engine.step.optimizer
    with reported(Outcomes(engine.step, say), on_step) as outcomes:
        for step in range(start, steps):
            factor = learning_rate_factor(optimization, step, steps) * rate_factor_at(step)
            set_learning_rates(optimizer, factor)
            learning_rate = optimization.learning_rate * factor
            for micro in range(optimization.gradient_accumulation):
                engine.accumulate(batch_at(step, micro))
            engine.update()
            outcomes.add(step + 1, learning_rate)
            pauses = pauses_at(step + 1)
            for outcome in outcomes.read(wait=pauses):
                on_step(*outcome)
            if pauses and on_pause(step + 1):
                break
