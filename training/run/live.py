"""The page's view of this server's runs: messages during a run, and its history for a page that opens later."""

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import host
from ..basics.errors import Refusal
from .controls import ACTIONS, Controls
from .history import MOST_POINTS, figures, or_none, points
from .progress import Progress
from .stored import stored_histories

EVENT = "kiln.run"
KEPT_RUNS = 16
SHORTEST_PAUSE = 0.1
"""seconds between two messages about steps"""

_runs: "OrderedDict[str, LiveRun]" = OrderedDict()


class LiveRun:
    """Shows one run's progress to the page; this process keeps the newest runs.

    Args:
        progress: is read, never changed.
        controls: take the page's requests.
        steps: of the whole run.
        name: of the LoRA.
        run: the run's id; empty: it is made of prompt and node.
        workflow: the id of the workflow.
        epoch_of: step -> epoch, both from 0.
        pictures: the loss of each picture, for the page; see `RunRecorder.picture_rows`.
        notes: see `Notes.sentences`.
    """

    def __init__(
        self,
        progress: Progress,
        controls: Controls,
        *,
        steps: int,
        name: str,
        run: str = "",
        workflow: str = "",
        epoch_of: Callable[[int], int] = lambda step: 0,
        pictures: Callable[[], list[dict[str, Any]]] = lambda: [],
        notes: list[str] | None = None,
    ):
        self.prompt_id, self.node_id = host.running_node()
        self.run = run or f"{self.prompt_id}/{self.node_id}"
        self.workflow, self.name, self.steps = workflow, name, steps
        self.progress, self.controls = progress, controls
        self.epoch_of, self.pictures = epoch_of, pictures
        self.notes = [] if notes is None else notes
        self.state, self.phase, self.phase_done, self.phase_total = "preparing", "loading", 0, 0
        self.message = ""
        self.started_at = time.time()
        self._last_step = time.monotonic()
        self._step_seconds = 0.0
        self._timed = 0
        self._last_sent = 0.0
        self._sent: dict[str, list[Any]] = {"validation": [], "marks": [], "samples": []}
        self._sent_steps = 0
        """what the page has"""
        _runs.pop(self.run, None)
        _runs[self.run] = self
        while len(_runs) > KEPT_RUNS:
            _runs.popitem(last=False)

    # ---------------------------------------------------------------- what the run tells

    def preparing(self, phase: str, done: int = 0, total: int = 0, message: str = "") -> None:
        """Shows a phase other than training: loading, encoding, sampling, validating or saving."""
        self.phase, self.phase_done, self.phase_total = phase, done, total
        state = "training" if self.progress.losses else "preparing"
        self._set("paused" if self.state == "paused" else state, message)

    def training(self) -> None:
        """Shows that steps are made, or that the run is paused. The time of the next step counts from here."""
        self.restart_step_clock()
        self.phase_done, self.phase_total = 0, 0
        if self.controls.is_paused:
            self.paused()
        else:
            self.phase = "training"
            self._set("training", "")

    def paused(self) -> None:
        """Shows that the run waits for "resume"."""
        self.phase = "paused"
        self._set("paused", "")

    def stepped(self) -> None:
        """An optimizer step is done."""
        now = time.monotonic()
        took = now - self._last_step
        self._last_step = now
        self._step_seconds = took if self._timed < 2 else 0.9 * self._step_seconds + 0.1 * took
        self._timed += 1
        if now - self._last_sent >= SHORTEST_PAUSE or self.progress.step == self.steps:
            self.send()

    def restart_step_clock(self) -> None:
        """Time spent on samples or files does not count as a step's."""
        self._last_step = time.monotonic()

    def ended(self, state: str, message: str) -> None:
        """state: finished, interrupted or failed."""
        self.phase = ""
        self._set(state, message)

    def send_all_again(self) -> None:
        """The run went back: the next message holds its whole history. The page skips what it has."""
        self._sent, self._sent_steps = {name: [] for name in self._sent}, 0

    def send(self) -> None:
        """Sends the figures and what is new of the curves, marks and samples."""
        self._last_sent = time.monotonic()
        events, step = self._events(), self.progress.step
        new = {name: _new(events[name], sent) for name, sent in self._sent.items()}
        new["points"] = points(self.progress, self._sent_steps)
        host.send(EVENT, {**self.summary(), **new})
        self._sent, self._sent_steps = events, step

    def release(self) -> None:
        """Keeps what the page may still ask for, and drops the run's models, pictures and data."""
        rows: list[dict[str, Any]] = []
        pictures = self.pictures
        step = self.progress.step
        epochs = {each: self.epoch_of(each) for each in (max(0, step - 1), self.steps - 1)}
        self.progress = self.progress.without_tensors()
        self.epoch_of, self.pictures = lambda step: epochs.get(step, 0), lambda: rows
        rows += pictures()

    # ---------------------------------------------------------------- what the page asks

    def ask(self, action: str, value: Any = None) -> None:
        """Passes a request on to the run.

        Raises:
            Refusal: the run does not take it in its present state.
            InputError: action or value are malformed.
        """
        if action in ACTIONS and action not in self._actions():
            raise Refusal(409, f"The run is {self.state} now and does not take {action!r}.")
        self.controls.ask(action, value)

    def summary(self) -> dict[str, Any]:
        """The newest figures."""
        step = self.progress.step
        return {
            "run": self.run,
            "workflow_id": self.workflow,
            "prompt_id": self.prompt_id,
            "node_id": self.node_id,
            "name": self.name,
            "state": self.state,
            "phase": self.phase,
            "phase_done": self.phase_done,
            "phase_total": self.phase_total,
            "message": self.message,
            "step": step,
            "steps": self.steps,
            "epoch": self.epoch_of(max(0, step - 1)) + 1,
            "epochs": self.epoch_of(self.steps - 1) + 1,
            **figures(self.progress),
            "seconds_per_step": self._step_seconds,
            "seconds_left": self._step_seconds * (self.steps - step),
            "elapsed": self.progress.elapsed,
            "started_at": self.started_at,
            "memory": host.memory(),
            "notes": self.notes,
            "sample_prompts": list(self.controls.sample_prompts),
            "controls": self._actions(),
        }

    def history(self, most: int = MOST_POINTS) -> dict[str, Any]:
        """The figures and all curves.

        Args:
            most: points of a curve; longer ones are thinned out.
        """
        return {**self.summary(), **self._events(), "points": points(self.progress, most=most)}

    def _events(self) -> dict[str, list[Any]]:
        """All validations, marks and samples."""
        progress = self.progress
        return {
            "validation": [[step, or_none(loss)] for step, loss in progress.validations],
            "marks": list(progress.marks),
            "samples": list(progress.samples),
        }

    def _actions(self) -> list[str]:
        """The actions that the run takes in its present state."""
        if self.state not in ("training", "paused"):
            return []
        idle = {"pause"} if self.controls.is_paused else {"resume"}
        if not self.controls.sample_prompts:
            idle.add("sample")
        return [action for action in ACTIONS if action not in idle]

    def _set(self, state: str, message: str) -> None:
        self.state, self.message = state, message
        self.send()


def histories(root: Path | None = None, workflow: str | None = None) -> list[dict[str, Any]]:
    """The runs that the page may show, oldest first.

    Args:
        root: of the run folders; None = only runs of this process.
        workflow: only those of this workflow, and of each node only the newest; None = all of this process.
    """
    live = list(_runs.values())
    if workflow is None:
        return [run.history() for run in live]
    newest = {run.node_id: run for run in live if run.workflow == workflow}
    found = [run.history() for run in newest.values()]
    if root is not None:
        found += stored_histories(root, workflow, set(newest))
    return sorted(found, key=lambda each: each["started_at"])


def _new(now: list[Any], sent: list[Any]) -> list[Any]:
    """What of a list was not sent before. A validation that is made again stands at the end, and no longer before."""
    same = len(sent)
    if same and now[same - 1 : same] != sent[-1:]:
        pairs = enumerate(zip(now, sent, strict=False))
        same = next((index for index, (one, other) in pairs if one != other), len(now))
    return now[same:]


def live_run(run: str) -> LiveRun | None:
    """A run of this process, by its id."""
    return _runs.get(run)
