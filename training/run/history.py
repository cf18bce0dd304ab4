"""The history of a run that an earlier server made, read from the run's folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .folder import read_metrics, read_record

SMOOTHING = 0.95
"""share of the past in the smoothed loss"""
MOST_POINTS = 4000
"""points of a history sent to the page"""
LARGEST = 1e300
"""a number in a run's folder above it is none of ours"""


def stored_history(path: Path, root: Path, workflow: str, known: set[str]) -> dict[str, Any] | None:
    """A run of an earlier server from its folder; None where it is of another workflow, known or not readable."""
    run = path.relative_to(root).as_posix()
    if run in known:
        return None
    try:
        record = read_record(path)
    except ValueError:
        return None
    texts = ("workflow_id", "prompt_id", "node_id", "name", "message")
    if record.get("workflow_id") != workflow or not all(isinstance(record.get(key), str) for key in texts):
        return None
    lines = read_metrics(path)
    points = [[line["step"], line["loss"], _count(line, "learning_rate")] for line in lines if _is_number(line, "loss")]
    validation = [[line["step"], line["validation_loss"]] for line in lines if _is_number(line, "validation_loss")]
    best = min(validation, key=lambda each: each[1], default=None)
    step = points[-1][0] if points else 0
    state = record.get("state")
    stopped = "The server ended while it ran. Queue the workflow again: it goes on from its last checkpoint."
    smoothed = 0.0
    for number, point in enumerate(points, start=1):
        smoothed = SMOOTHING * smoothed + (1.0 - SMOOTHING) * point[1]
        if number == len(points):
            smoothed /= 1.0 - SMOOTHING**number
    return {
        **{key: record[key] for key in texts}, "run": run,
        "state": state if state in ("finished", "interrupted", "failed") else "interrupted",
        "message": record["message"] if state in ("finished", "interrupted", "failed") else stopped,
        "phase": "", "phase_done": 0, "phase_total": 0, "step": step, "steps": _count(record, "steps"),
        "epoch": _count(record, "epochs"), "epochs": _count(record, "epochs"),
        "loss": points[-1][1] if points else None, "smoothed": smoothed if points else None,
        "learning_rate": points[-1][2] if points else 0.0,
        "validation_loss": validation[-1][1] if validation else None,
        "best": {"step": best[0], "validation_loss": best[1]} if best else None,
        "seconds_per_step": _count(record, "elapsed") / max(1, step), "seconds_left": 0.0,
        "elapsed": _count(record, "elapsed"), "started_at": _count(record, "started_at"), "memory": None,
        "notes": [note for note in _list(record, "notes") if isinstance(note, str)], "sample_prompts": [],
        "controls": [], "points": thinned(points, MOST_POINTS), "validation": validation,
        "marks": [mark for line in lines if (mark := _mark_of(line))],
        "samples": [sample for line in lines if (sample := _sample_of(line))],
    }  # fmt: skip


def thinned(points: list[list[Any]], most: int) -> list[list[Any]]:
    """At most about so many points: of each stretch the lowest and the highest, and the last of all."""
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


def _mark_of(line: Mapping[str, Any]) -> dict[str, Any] | None:
    kind, text = line.get("mark"), line.get("text", "")
    is_mark = isinstance(kind, str) and isinstance(text, str)
    return {"step": line["step"], "kind": kind, "text": text} if is_mark else None


def _is_number(line: Mapping[str, Any], key: str) -> bool:
    value = line.get(key)
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _count(record: Mapping[str, Any], key: str) -> float:
    return record[key] if _is_number(record, key) else 0


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def _sample_of(line: Mapping[str, Any]) -> dict[str, Any] | None:
    """A sample picture of a line, with nothing in it but what the page takes."""
    found = line.get("sample")
    texts = ("prompt", "filename", "subfolder")
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in texts):
        return None
    return {"step": line["step"], "prompt_index": _count(found, "prompt_index"), **{key: found[key] for key in texts}}
