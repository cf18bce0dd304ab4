"""The loop."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator

import torch

from ..config import LoRAConfig
from .batches import Batch
from .engine import Engine
from .optimizers import rate_factor, set_learning_rates
from .schedules import learning_rate_factor
from .step import Step

LAG = 2
"""Steps that may be under way on a GPU beyond the last whose loss was read."""


class Diverged(RuntimeError):
    """The loss or its gradients are no longer numbers, or the loss is larger than it can be of a model that learns.

    Args:
        what: e.g. "The loss is nan".
        step: the optimizer step, from 1.
        is_loss: whether it is the loss: then what was learned up to the step before is no good either.
    """

    def __init__(self, what: str, step: int, learning_rate: float, is_loss: bool = True):
        self.step = step
        self.spoilt = step - 1 if is_loss else step
        """the first step up to which what was learned is no good"""
        super().__init__(
            f"{what} at step {step}: training has diverged. Lower learning_rate (now {learning_rate:g}), "
            "or raise warmup, or use precision fp32."
        )


def train(
    engine: Engine,
    batch_at: Callable[[int, int], Batch],
    config: LoRAConfig,
    steps: int,
    on_step: Callable[[int, float, float], None],
    pauses_at: Callable[[int], bool] = lambda step: False,
    on_pause: Callable[[int], bool | None] = lambda step: None,
    start: int = 0,
    rate_factor_at: Callable[[int], float] = lambda step: 1.0,
) -> None:
    """Trains the parameters of the engine's step.

    Args:
        batch_at: the batch of (step, forward pass within the step); its cond may carry a graph. May raise to end.
        on_step: told (steps done, loss, the model's learning rate) of every step, on a GPU some steps later. May raise
            to end.
        pauses_at: after how many steps done `on_pause` is called, with all of them done and told; asked once a step.
        on_pause: True ends the run there. May raise to end.
        start: steps done before, which are not done again.
        rate_factor_at: what the schedule's learning rate is multiplied by at a step.

    Raises:
        Diverged: the loss is not finite; the parameters are those before that step.
    """
    outcomes = Outcomes(engine.step)
    try:
        for step in range(start, steps):
            factor = learning_rate_factor(config, step, steps) * rate_factor_at(step)
            set_learning_rates(engine.step.optimizer, factor)
            learning_rate = config.optimization.learning_rate * factor * rate_factor(engine.step.optimizer)
            for micro in range(config.optimization.gradient_accumulation):
                engine.accumulate(batch_at(step, micro))
            engine.move()
            outcomes.add(step + 1, learning_rate)
            pauses = pauses_at(step + 1)
            for outcome in outcomes.read(wait=pauses):
                on_step(*outcome)
            if pauses and on_pause(step + 1):
                break
        for outcome in outcomes.read(wait=True):
            on_step(*outcome)
    except Diverged:  # what came after it counts no more
        raise
    except BaseException:
        with contextlib.suppress(RuntimeError):  # what ends the run counts, not what the last steps had to say
            for outcome in outcomes.read(wait=True):
                on_step(*outcome)
        raise


class Outcomes:
    """What each step gave, read back while later ones run."""

    def __init__(self, step: Step):
        self.step = step
        self.is_async = step.outcome.is_cuda and step.is_capturable
        self._pending: deque[tuple[int, float, torch.Tensor | list[float], torch.cuda.Event | None]] = deque()

    def add(self, number: int, learning_rate: float) -> None:
        """Asks for the outcome of the step just moved."""
        if not self.is_async:
            self._pending.append((number, learning_rate, self.step.outcome.tolist(), None))
            return
        outcome = torch.empty(2, pin_memory=True)
        outcome.copy_(self.step.outcome, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((number, learning_rate, outcome, arrived))

    def read(self, wait: bool) -> Iterator[tuple[int, float, float]]:
        """(steps done, loss, learning rate) of those that have arrived, and of those that are late by more than LAG.

        Raises:
            Diverged: at the first that is no number; the later ones, in which nothing moved, are dropped.
        """
        while self._pending:
            number, learning_rate, outcome, arrived = self._pending[0]
            if arrived is not None:
                if not (wait or len(self._pending) > LAG or arrived.query()):
                    return
                arrived.synchronize()
            self._pending.popleft()
            loss, norm = map(float, outcome)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._pending.clear()
                is_loss = not math.isfinite(loss)
                what = f"The loss is {loss}" if is_loss else "The gradients are no numbers"
                raise Diverged(what, number, self.step.config.optimization.learning_rate, is_loss)
            yield number, loss, learning_rate
