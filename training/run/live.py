"""What a run tells the page: live, and again to a page that opens later, even of another server's life."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import host
from ..basics.errors import Refusal
from .controls import ACTIONS, Controls
from .folder import runs_below
from .history import MOST_POINTS, SMOOTHING, _count, _is_number, _mark_of, _sample_of, stored_history, thinned

EVENT = "kiln.run"
KEPT_RUNS = 16
MOST_STORED = 50
"""runs of earlier servers that are looked at"""
SHORTEST_PAUSE = 0.1
"""seconds between two messages of a run"""

_runs: "OrderedDict[str, RunEvents]" = OrderedDict()


class RunEvents:
    """The state of one run, and its messages. The newest runs are kept for the page.

    Args:
        steps: of the whole run.
        name: of the LoRA.
        run: the run's id; empty: one is made of prompt and node.
        workflow: id of the workflow it is of, as the page knows it.
        controls: what the page may ask of it.
        epoch_of: step -> epoch, both from 0.
        pictures: the loss of each picture, for the page; see `Keeper.picture_rows`.
    """

    def __init__(
        self,
        steps: int,
        name: str,
        run: str = "",
        workflow: str = "",
        controls: Controls | None = None,
        epoch_of: Callable[[int], int] = lambda step: 0,
        pictures: Callable[[], list[dict[str, Any]]] = lambda: [],
    ):
        self.prompt_id, self.node_id = host.running_node()
        self.run = run or f"{self.prompt_id}/{self.node_id}"
        self.workflow, self.name, self.steps = workflow, name, steps
        self.controls = controls or Controls()
        self.epoch_of, self.pictures = epoch_of, pictures
        self.state, self.phase, self.phase_done, self.phase_total = "preparing", "loading", 0, 0
        self.message = ""
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.validation: list[tuple[int, float]] = []
        self.marks: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.smoothed = self.largest = 0.0
        self.started_at = time.time()
        self._average = 0.0
        self._started = self._last_step = time.monotonic()
        self._ended: float | None = None
        self._step_seconds = 0.0
        self._timed = 0
        self._last_sent = 0.0
        self._sent = {"points": 0, "validation": 0, "marks": 0, "samples": 0}
        _runs.pop(self.run, None)
        _runs[self.run] = self
        while len(_runs) > KEPT_RUNS:
            _runs.popitem(last=False)

    def restore(self, lines: Sequence[Mapping[str, Any]], losses: Sequence[float], elapsed: float) -> None:
        """Takes over the history of the run that goes on here.

        Args:
            lines: of metrics.jsonl.
            losses: of every step.
            elapsed: seconds that the run took before.
        """
        rates = {line["step"]: _count(line, "learning_rate") for line in lines if "loss" in line}
        for step, loss in enumerate(losses, start=1):
            self._add(float(loss), float(rates.get(step, 0.0)))
        self.validation = [
            (line["step"], line["validation_loss"]) for line in lines if _is_number(line, "validation_loss")
        ]
        self.marks = [mark for line in lines if (mark := _mark_of(line))]
        self.samples = [sample for line in lines if (sample := _sample_of(line))]
        self._started -= elapsed
        if losses:
            self.mark(len(losses), "resumed")

    def preparing(self, phase: str, done: int = 0, total: int = 0, message: str = "") -> None:
        """Says what is being made ready: loading, encoding, sampling, validating or saving."""
        self.phase, self.phase_done, self.phase_total = phase, done, total
        going_on = "training" if self.losses else "preparing"
        self._set("paused" if self.state == "paused" else going_on, message)

    def started(self) -> None:
        """Training begins or goes on: the clock for the time left starts here."""
        self.resume_clock()
        self.phase_done, self.phase_total = 0, 0
        if self.controls.is_paused:
            self.paused()
        else:
            self.phase = "training"
            self._set("training", "")

    def paused(self) -> None:
        """The run waits until it is told to go on."""
        self.phase = "paused"
        self._set("paused", "")

    def step(self, loss: float, learning_rate: float) -> None:
        """One optimizer step is done."""
        now = time.monotonic()
        took = now - self._last_step
        self._last_step = now
        self._step_seconds = took if self._timed < 2 else 0.9 * self._step_seconds + 0.1 * took
        self._timed += 1
        self._add(loss, learning_rate)
        if now - self._last_sent >= SHORTEST_PAUSE or len(self.losses) == self.steps:
            self._send()

    def validated(self, step: int, loss: float) -> None:
        """The held-out pictures were looked at."""
        self.validation.append((step, loss))

    def mark(self, step: int, kind: str, text: str = "") -> None:
        """Something happened at a step: checkpoint, sample, resumed, learning_rate or note."""
        self.marks.append({"step": step, "kind": kind, "text": text})

    def sampled(self, sample: dict[str, Any]) -> None:
        """A sample picture is there: step, prompt, prompt_index, filename, subfolder."""
        self.samples.append(sample)
        self._send()

    def drop_samples(self, step: int) -> None:
        """Forgets the sample pictures of a step: they are drawn again."""
        self.samples = [each for each in self.samples if each["step"] != step]
        self._sent["samples"] = min(self._sent["samples"], len(self.samples))

    def resume_clock(self) -> None:
        """Time spent on samples or files does not count as a step's."""
        self._last_step = time.monotonic()

    def cut(self, step: int) -> None:
        """Forgets what came after a step: the run has gone back to it."""
        losses, rates = self.losses[:step], self.rates[:step]
        self.losses, self.rates, self._average, self.largest = [], [], 0.0, 0.0
        for loss, rate in zip(losses, rates, strict=True):
            self._add(loss, rate)
        self.validation = [each for each in self.validation if each[0] <= step]
        self.marks = [each for each in self.marks if each["step"] <= step]
        self.samples = [each for each in self.samples if each["step"] <= step]
        self._sent = dict.fromkeys(self._sent, 0)  # the page knows what it has, and takes the rest

    def ended(self, state: str, message: str) -> None:
        """state: finished, interrupted or failed."""
        self._ended = time.monotonic()
        self.phase = ""
        self._set(state, message)

    def ask(self, action: str, value: Any = None) -> None:
        """Passes a wish of the page on to the run.

        Raises:
            Refusal: the run does not take it now.
            InputError: it is malformed.
        """
        if action in ACTIONS and action not in self._controls():
            raise Refusal(409, f"The run is {self.state} now and does not take {action!r}.")
        self.controls.ask(action, value)

    def let_go(self) -> None:
        """Keeps what the page may still ask, and nothing of the run's models and data."""
        pictures, step = self.pictures, len(self.losses)
        epochs = {each: self.epoch_of(each) for each in (max(0, step - 1), self.steps - 1)}
        self.pictures, self.epoch_of = list, lambda step: epochs.get(step, 0)
        rows = pictures()
        self.pictures = lambda: rows

    @property
    def elapsed(self) -> float:
        """Seconds, those before a stop included, those after its end not."""
        return (self._ended or time.monotonic()) - self._started

    def summary(self) -> dict[str, Any]:
        """The newest figures, as the page takes them."""
        step = len(self.losses)
        best = min(self.validation, key=lambda each: each[1], default=None)
        return {
            "run": self.run, "workflow_id": self.workflow, "prompt_id": self.prompt_id, "node_id": self.node_id,
            "name": self.name, "state": self.state,
            "phase": self.phase, "phase_done": self.phase_done, "phase_total": self.phase_total,
            "message": self.message, "step": step, "steps": self.steps,
            "epoch": self.epoch_of(max(0, step - 1)) + 1, "epochs": self.epoch_of(self.steps - 1) + 1,
            "loss": _number(self.losses[-1]) if step else None,
            "smoothed": _number(self.smoothed) if step else None,
            "learning_rate": self.rates[-1] if step else 0.0,
            "validation_loss": _number(self.validation[-1][1]) if self.validation else None,
            "best": {"step": best[0], "validation_loss": _number(best[1])} if best else None,
            "seconds_per_step": self._step_seconds, "seconds_left": self._step_seconds * (self.steps - step),
            "elapsed": self.elapsed, "started_at": self.started_at, "memory": host.memory(),
            "notes": self.notes, "sample_prompts": list(self.controls.sample_prompts),
            "controls": self._controls(),
        }  # fmt: skip

    def history(self, most: int = MOST_POINTS) -> dict[str, Any]:
        """The summary with all curves, thinned out where they are very long."""
        return {
            **self.summary(), "points": thinned(self._points(0), most),
            "validation": [[step, _number(loss)] for step, loss in self.validation],
            "marks": list(self.marks), "samples": list(self.samples),
        }  # fmt: skip

    def _add(self, loss: float, rate: float) -> None:
        self._average = SMOOTHING * self._average + (1.0 - SMOOTHING) * loss
        self.smoothed = self._average / (1.0 - SMOOTHING ** (len(self.losses) + 1))
        self.largest = max(self.largest, loss)
        self.rates.append(rate)
        self.losses.append(loss)  # last: the page may ask from another thread

    def _points(self, start: int) -> list[list[Any]]:
        return [[index + 1, _number(self.losses[index]), self.rates[index]] for index in range(start, len(self.losses))]

    def _controls(self) -> list[str]:
        if self.state not in ("training", "paused"):
            return []
        idle = {"pause"} if self.controls.is_paused else {"resume"}
        if not self.controls.sample_prompts:
            idle.add("sample")
        return [action for action in ACTIONS if action not in idle]

    def _set(self, state: str, message: str) -> None:
        self.state, self.message = state, message
        self._send()

    def _send(self) -> None:
        self._last_sent = time.monotonic()
        new = {
            "points": thinned(self._points(self._sent["points"]), MOST_POINTS),
            "validation": [[step, _number(loss)] for step, loss in self.validation[self._sent["validation"] :]],
            "marks": self.marks[self._sent["marks"] :], "samples": self.samples[self._sent["samples"] :],
        }  # fmt: skip
        self._sent = {
            "points": len(self.losses), "validation": len(self.validation), "marks": len(self.marks),
            "samples": len(self.samples),
        }  # fmt: skip
        host.send(EVENT, {**self.summary(), **new})


def histories(root: Path | None = None, workflow: str | None = None) -> list[dict[str, Any]]:
    """The runs that the page may show, oldest first.

    Args:
        root: of the run folders; None = only runs of this process.
        workflow: only those of this workflow, and of each node only the newest; None = all of this process.
    """
    live = list(_runs.values())
    if workflow is None:
        return [run.history() for run in live]
    found = {run.run: run.history() for run in live if run.workflow == workflow}
    newest = {(each["node_id"]): each for each in found.values()}
    if root is not None:
        for path in list(runs_below(root))[-MOST_STORED:][::-1]:
            stored = stored_history(path, root, workflow, set(found))
            if stored is not None:
                newest.setdefault(stored["node_id"], stored)
    return sorted(newest.values(), key=lambda each: each["started_at"])


def live_run(run: str) -> "RunEvents | None":
    """A run of this process, by its id."""
    return _runs.get(run)


def _number(value: float) -> float | None:
    """JSON has no NaN; the host would drop the whole message."""
    return value if math.isfinite(value) else None
