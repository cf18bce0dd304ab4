"""A run's figures and curves as the page takes them; and those of a run that an earlier server made."""

import math
from pathlib import Path
from typing import Any

from .folder import read_metrics, read_record
from .progress import Progress

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
        "learning_rate": rates[-1] if losses and rates else 0.0,
        "validation_loss": or_none(validations[-1][1]) if validations else None,
        "best": {"step": best[0], "validation_loss": or_none(best[1])} if best else None,
    }


def points(progress: Progress, since: int = 0) -> list[list[Any]]:
    """[step, loss, learning rate] of each step after `since`."""
    made = zip(progress.losses[since:], progress.learning_rates[since:], strict=False)
    return [[step, or_none(loss), rate] for step, (loss, rate) in enumerate(made, start=since + 1)]


def stored_history(path: Path, root: Path, workflow: str, known: set[str]) -> dict[str, Any] | None:
    """A run of an earlier server, from its folder. None: it is of another workflow, known already, or unreadable.

    Args:
        path: of the run's folder.
        root: of all runs.
        workflow: the id of the workflow.
        known: ids of runs that are not wanted.
    """
    run = path.relative_to(root).as_posix()
    if run in known:
        return None
    try:
        record = read_record(path)
    except ValueError:
        return None
    texts = ("workflow_id", "prompt_id", "node_id", "name", "message")
    if record.get("workflow_id") != workflow or not all(key in record for key in texts):
        return None
    lines, progress = read_metrics(path), Progress()
    progress.load_metrics(lines)
    steps = [line["step"] for line in lines if "loss" in line]
    for line in lines:
        if "loss" in line:
            progress.add_step(line["loss"], line.get("learning_rate", 0.0))
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    progress.validations = list(losses.items())
    curve = [[step, *point[1:]] for step, point in zip(steps, points(progress), strict=True)]
    step, elapsed, epochs = steps[-1] if steps else 0, record.get("elapsed", 0.0), record.get("epochs", 0)
    # A run that was killed does not tell its epoch; then it follows from the share of the steps.
    epoch = record.get("epoch") or min(epochs, 1 + max(0, step - 1) * epochs // max(1, record.get("steps", 0)))
    state, message = record.get("state", ""), record.get("message", "")
    has_ended = state in ENDS
    return {
        **{key: record.get(key) for key in texts},
        "run": run,
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
        "points": thinned(curve, MOST_POINTS),
        "validation": [list(each) for each in progress.validations],
        "marks": progress.marks,
        "samples": progress.samples,
    }


def thinned(points: list[list[Any]], most: int) -> list[list[Any]]:
    """About `most` of the points: the lowest and the highest of each stretch, and the last of all."""
    if len(points) <= most:
        return points
    stretch = math.ceil(2 * len(points) / most)
    kept: list[list[Any]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        known = [point for point in part if point[1] is not None] or part[:1]
        low, high = (pick(known, key=lambda point: point[1] or 0.0) for pick in (min, max))
        kept += sorted([low, high] if low is not high else [low], key=lambda point: point[0])
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def or_none(value: float) -> float | None:
    """None for NaN and infinity, which JSON does not have: the host would drop the whole message."""
    return value if math.isfinite(value) else None
