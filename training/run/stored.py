"""The runs of earlier servers that the page shows. What was read of them is kept in memory until their files change."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import Required, TypedDict

from ..basics.files import one_patience, read
from .folder import open_in
from .history import STOPPED, stored_history
from .records import LARGEST_RECORD, METRICS, RECORD, Number
from .runs import runs_below
from .workflows import workflow_of

MOST_RUNS = 20_000
"""folders that are looked at, the newest by name"""
MOST_SHOWN = 50
"""histories that are read for one answer, the newest"""
MOST_KEPT = 64
"""histories in memory"""

Stamp = tuple[int, ...]


class _Facts(TypedDict, total=False):
    """The part of run.json that tells whether a run is shown."""

    workflow_id: Required[str]
    node_id: Required[str]
    started_at: Number


@dataclass(frozen=True)
class _Run:
    """A run's folder as it was when its record was read."""

    path: Path
    stamp: Stamp
    workflow: str
    node: str
    started_at: float


_FACTS = TypeAdapter(_Facts)
_lock = Lock()
_runs: dict[Path, _Run | Stamp] = {}
"""by folder; the stamp alone where the record is not one of a run that can be shown"""
_histories: dict[Path, tuple[Stamp, dict[str, Any] | None]] = {}
"""by folder, the last used at the end"""


def stored_histories(root: Path, workflow: str, nodes: set[str]) -> list[dict[str, Any]]:
    """The newest run of each node of a workflow, from the runs' folders.

    Args:
        root: of all runs.
        nodes: ids of nodes that are left out.
    """
    with _lock, one_patience():
        shown: dict[str, dict[str, Any]] = {}
        for run in sorted(_runs_of(root, workflow), key=lambda run: (run.started_at, run.path.name), reverse=True):
            if len(shown) < MOST_SHOWN and run.node not in nodes and run.node not in shown:
                history = _history(run, root)
                if history is not None:
                    shown[run.node] = _or_open_elsewhere(history, run.path)
        return list(shown.values())


def _runs_of(root: Path, workflow: str) -> Iterator[_Run]:
    paths = list(runs_below(root))[-MOST_RUNS:]
    for gone in _runs.keys() - set(paths):
        del _runs[gone]
    for path in paths:
        stamp = _stamp(path / RECORD)
        known = _runs.get(path)
        if known is None or stamp != (known.stamp if isinstance(known, _Run) else known):
            try:
                known = _runs[path] = _read(path, stamp) or stamp
            except OSError:  # it is read again for the next answer
                _runs.pop(path, None)
                continue
        if isinstance(known, _Run) and known.workflow == workflow:
            yield known


def _read(path: Path, stamp: Stamp) -> _Run | None:
    if not stamp or stamp[2] > LARGEST_RECORD:
        return None
    try:
        facts = _FACTS.validate_json(read(path / RECORD), strict=True)
    except ValueError:
        return None
    return _Run(path, stamp, workflow_of(facts["workflow_id"]), facts["node_id"], facts.get("started_at", 0.0))


def _history(run: _Run, root: Path) -> dict[str, Any] | None:
    stamp = (*run.stamp, *_stamp(run.path / METRICS))
    known = _histories.pop(run.path, None)
    if known is None or known[0] != stamp:
        try:
            known = stamp, stored_history(run.path, root)
        except OSError:  # it is read again for the next answer
            return None
    _histories[run.path] = known
    while len(_histories) > MOST_KEPT:
        del _histories[next(iter(_histories))]
    return known[1]


def _or_open_elsewhere(history: dict[str, Any], path: Path) -> dict[str, Any]:
    """The history; of a run that another process has open it says so."""
    owner = open_in(path, patience=0.0) if history["message"] == STOPPED else None
    if owner is None:
        return history
    return {**history, "state": "training", "phase": "training", "message": f"It goes on in {owner}."}


def _stamp(path: Path) -> Stamp:
    """What changes when a file is written to or replaced; empty where there is none. Links are not followed."""
    try:
        facts = os.stat(path, follow_symlinks=False)
    except OSError:
        return ()
    is_file = stat.S_ISREG(facts.st_mode)
    return (facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size, facts.st_ino) if is_file else ()
