"""Loss and gradient norm of each step, read back from the device while later steps run."""

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator

import torch

from ..basics.pinned import pinned
from .step import Step

LAG = 2
"""Steps that may run on a GPU beyond the last one whose outcome was read."""


class Diverged(RuntimeError):
    """The loss or the gradients are not finite, or the loss is too large for a model that learns.

    Args:
        what: e.g. "The loss is nan".
        step: the optimizer step, from 1.
        is_loss: False: the gradients are not finite.
    """

    def __init__(self, what: str, step: int, learning_rate: float, is_loss: bool = True):
        self.step = step
        self.spoilt = step - 1 if is_loss else step
        """After this many steps the parameters were already of no use: a bad loss is the fault of the step before."""
        super().__init__(
            f"{what} at step {step}: training has diverged. Lower learning_rate (now {learning_rate:g}), "
            "or raise warmup, or use precision fp32."
        )


class Outcomes:
    """The outcomes of a step's updates, in order.

    Args:
        say: called with a sentence where the system gives no pinned memory, so that each step waits for the one before.
    """

    def __init__(self, step: Step, say: Callable[[str], None]):
        self.step = step
        self.say = say
        self.is_async = step.outcome.is_cuda
        self._pending: deque[tuple[int, float, torch.Tensor | list[float], torch.cuda.Event | None]] = deque()

    def add(self, number: int, learning_rate: float) -> None:
        """Requests the outcome of the last update from the device.

        Args:
            learning_rate: before the factor that the optimizer finds.
        """
        if not self.is_async:
            self._pending.append((number, learning_rate, self.step.outcome.tolist(), None))
            return
        outcome = pinned(torch.empty(3), self.say)
        outcome.copy_(self.step.outcome, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((number, learning_rate, outcome, arrived))

    def read(self, wait: bool) -> Iterator[tuple[int, float, float]]:
        """(steps done, loss, learning rate) of the outcomes that have arrived.

        Args:
            wait: for all of them; else only for those more than LAG steps back.

        Raises:
            Diverged: at the first that is not finite; later ones, which updated nothing, are dropped.
        """
        while self._pending:
            number, learning_rate, outcome, arrived = self._pending[0]
            if arrived is not None:
                if not (wait or len(self._pending) > LAG or arrived.query()):
                    return
                arrived.synchronize()
            self._pending.popleft()
            loss, norm, rate_factor = map(float, outcome)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._pending.clear()
                is_loss = not math.isfinite(loss)
                what = f"The loss is {loss}" if is_loss else "The gradients are no numbers"
                raise Diverged(what, number, self.step.optimization.learning_rate, is_loss)
            yield number, loss, learning_rate * rate_factor


@contextlib.contextmanager
def reported(outcomes: Outcomes, on_step: Callable[[int, float, float], None]) -> Iterator[Outcomes]:
    """Reports the outcomes still pending to `on_step` when the context ends, also by an exception.

    Raises:
        Diverged: one of them is not finite, whatever has ended the context.
    """
    try:
        yield outcomes
        for outcome in outcomes.read(wait=True):
            on_step(*outcome)
    except Diverged:  # the steps after it do not count
        raise
    except BaseException as error:
        try:
            for outcome in outcomes.read(wait=True):
                on_step(*outcome)
        except Diverged as diverged:  # what the steps after it have left must not be taken for a state to go on from
            raise diverged from error
        except RuntimeError:  # the exception that ends the run is the one to raise
            pass
        raise
