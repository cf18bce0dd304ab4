"""What a run tells the page: live, and again to a page that opens later."""

import math
import time
from collections import OrderedDict
from typing import Any

from . import host

EVENT = "kiln.run"
SMOOTHING = 0.95
"""share of the past in the smoothed loss"""
KEPT_RUNS = 16
MOST_POINTS = 2000
"""points of a history sent to the page"""
SHORTEST_PAUSE = 0.1
"""seconds between two messages of a run"""

_runs: "OrderedDict[tuple[str, str], RunEvents]" = OrderedDict()


class RunEvents:
    """The state of one run, and its messages. One a node and prompt; the newest runs are kept for the page."""

    def __init__(self, steps: int, name: str):
        self.prompt_id, self.node_id = host.where()
        self.name = name
        self.steps = steps
        self.state = "preparing"
        self.message = ""
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.learning_rate = 0.0
        self._average = 0.0
        self._started = self._last_step = time.monotonic()
        self._step_seconds = 0.0
        self._last_sent = 0.0
        self._points_sent = 0
        _runs[self.prompt_id, self.node_id] = self
        while len(_runs) > KEPT_RUNS:
            _runs.popitem(last=False)

    def preparing(self, what: str) -> None:
        """Says what is being made ready."""
        self._set("preparing", what)

    def started(self) -> None:
        """Training begins: the clock for the time left starts here."""
        self._last_step = time.monotonic()
        self._set("training", "")

    def step(self, loss: float, learning_rate: float) -> None:
        """One optimizer step is done."""
        now = time.monotonic()
        took = now - self._last_step
        self._last_step = now
        self._step_seconds = took if len(self.losses) < 2 else 0.9 * self._step_seconds + 0.1 * took
        self._average = SMOOTHING * self._average + (1.0 - SMOOTHING) * loss
        self.smoothed.append(self._average / (1.0 - SMOOTHING ** (len(self.losses) + 1)))
        self.losses.append(loss)  # last: the page may ask from another thread
        self.learning_rate = learning_rate
        if now - self._last_sent >= SHORTEST_PAUSE or len(self.losses) == self.steps:
            self._send()

    def resume_clock(self) -> None:
        """Time spent on samples or files does not count as a step's."""
        self._last_step = time.monotonic()

    def ended(self, state: str, message: str) -> None:
        """state: finished, interrupted or failed."""
        self._set(state, message)

    def summary(self) -> dict[str, Any]:
        """The newest figures, as the page takes them."""
        step = len(self.losses)
        return {
            "prompt_id": self.prompt_id,
            "node_id": self.node_id,
            "name": self.name,
            "state": self.state,
            "message": self.message,
            "step": step,
            "steps": self.steps,
            "loss": _number(self.losses[-1]) if step else None,
            "smoothed": _number(self.smoothed[-1]) if step else None,
            "learning_rate": self.learning_rate,
            "seconds_per_step": self._step_seconds,
            "seconds_left": self._step_seconds * (self.steps - step),
            "elapsed": time.monotonic() - self._started,
        }

    def history(self) -> dict[str, Any]:
        """The summary with both curves: [step, loss, smoothed] a point, thinned out where there are very many."""
        stride = max(1, math.ceil(len(self.losses) / MOST_POINTS))
        newest = len(self.losses) - 1
        return {**self.summary(), "points": self._points(newest % stride if newest >= 0 else 0, stride)}

    def _points(self, start: int, stride: int = 1) -> list[list[Any]]:
        indices = range(start, len(self.losses), stride)
        return [[index + 1, _number(self.losses[index]), _number(self.smoothed[index])] for index in indices]

    def _set(self, state: str, message: str) -> None:
        self.state, self.message = state, message
        self._send()

    def _send(self) -> None:
        self._last_sent = time.monotonic()
        host.send(EVENT, {**self.summary(), "points": self._points(self._points_sent)})
        self._points_sent = len(self.losses)


def histories() -> list[dict[str, Any]]:
    """All runs that are kept, oldest first."""
    return [run.history() for run in list(_runs.values())]


def _number(value: float) -> float | None:
    """JSON has no NaN; the host would drop the whole message."""
    return value if math.isfinite(value) else None
