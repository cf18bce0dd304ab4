"""A run's figures and curves as the page takes them; and those of a run that an earlier server made."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .progress import Progress
from .records import metrics_blocks, read_record
from .workflows import workflow_of

MOST_POINTS = 4000
"""points of a curve that are sent to the page"""
ENDS = ("finished", "interrupted", "failed")
STOPPED = "The server ended while it ran. Queue the workflow again: it goes on from its last checkpoint."


def figures(progress: Progress) -> dict[str, Any]:
    """The newest loss, learning rate and validation, and the best validation."""
    losses, rates, validations = progress.losses, progress.learning_rates, progress.validations
    best = progress.best_validation
    return {
        "loss": or_none(losses[-1]) if losses else None,
        "smoothed": or_none(progress.smoothed) if losses else None,
        "learning_rate": or_none(rates[-1]) if losses and rates else 0.0,
        "validation_loss": or_none(validations[-1][1]) if validations else None,
        "best": {"step": best[0], "validation_loss": or_none(best[1])} if best else None,
    }


def points(progress: Progress, since: int = 0, most: int = MOST_POINTS) -> list[list[Any]]:
    """[step, loss, learning rate] of the steps after `since`, thinned out to about `most`."""
    losses, rates = progress.losses[since:], progress.learning_rates[since:]
    losses = losses[: len(rates)]  # a run that goes back replaces both meanwhile
    return _curve(range(since + 1, since + 1 + len(losses)), losses, rates, most)


def stored_history(path: Path, root: Path) -> dict[str, Any] | None:
    """A run of an earlier server, from its folder. None: it cannot be read, or lacks what the page needs.

    Args:
        path: of the run's folder.
        root: of all runs.

    Raises:
        OSError: its files cannot be read now: another program holds them ...
    """
    try:
        record = read_record(path)
    except ValueError:
        return None
    texts = ("workflow_id", "prompt_id", "node_id", "name", "message")
    if not all(key in record for key in texts):
        return None
    progress, validations, events = Progress(), {}, []
    steps: list[int] = []
    losses: list[float] = []
    rates: list[float] = []
    for lines in metrics_blocks(path):
        for line in lines:
            if "loss" in line:
                steps.append(line["step"])
                losses.append(line["loss"])
                rates.append(line.get("learning_rate", 0.0))
            if "validation_loss" in line:
                validations[line["step"]] = line["validation_loss"]
            if "mark" in line or "sample" in line:
                events.append(line)
    progress.load_steps(losses, rates)
    progress.load_events(events)
    progress.validations = list(validations.items())
    step, elapsed, epochs = steps[-1] if steps else 0, record.get("elapsed", 0.0), record.get("epochs", 0)
    # A run that was killed does not tell its epoch; then it follows from the share of the steps.
    epoch = record.get("epoch") or min(epochs, 1 + max(0, step - 1) * epochs // max(1, record.get("steps", 0)))
    state, message = record.get("state", ""), record.get("message", "")
    has_ended = state in ENDS
    return {
        **{key: record.get(key) for key in texts},
        "workflow_id": workflow_of(record.get("workflow_id")),
        "run": path.relative_to(root).as_posix(),
        "state": state if has_ended else "interrupted",
        "message": message if has_ended else STOPPED,
        "phase": "",
        "phase_done": 0,
        "phase_total": 0,
        "step": step,
        "steps": record.get("steps", 0),
        "epoch": epoch,
        "epochs": epochs,
        **figures(progress),
        "seconds_per_step": elapsed / max(1, step),
        "seconds_left": 0.0,
        "elapsed": elapsed,
        "started_at": record.get("started_at", 0.0),
        "memory": None,
        "notes": record.get("notes", []),
        "sample_prompts": [],
        "controls": [],
        "points": _curve(steps, losses, rates, MOST_POINTS),
        "validation": [list(each) for each in progress.validations],
        "marks": progress.marks,
        "samples": progress.samples,
    }


def kept(losses: Sequence[float], most: int) -> list[int]:
    """The indices that are left of a curve of about `most` points: of each stretch the lowest and the highest loss, and
    the last of all."""
    if len(losses) <= most:
        return list(range(len(losses)))
    stretch = math.ceil(2 * len(losses) / most)
    found: list[int] = []
    for start in range(0, len(losses), stretch):
        part = losses[start : start + stretch]
        if not math.isfinite(sum(part)):  # NaN is neither lower nor higher than others
            known = [loss for loss in part if math.isfinite(loss)]
            part = [loss if math.isfinite(loss) else known[0] for loss in part] if known else [0.0]
        found += sorted({start + part.index(min(part)), start + part.index(max(part))})
    return found if found[-1] == len(losses) - 1 else [*found, len(losses) - 1]


def _curve(steps: Sequence[int], losses: Sequence[float], rates: Sequence[float], most: int) -> list[list[Any]]:
    return [[steps[index], or_none(losses[index]), or_none(rates[index])] for index in kept(losses, most)]


def or_none(value: float) -> float | None:
    """None for NaN and infinity, which JSON does not have: the host would drop the whole message."""
    return value if math.isfinite(value) else None
