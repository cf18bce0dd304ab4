"""The folders of all runs: found, ordered, and made anew. <root>/<name>/<time>/ is a run's."""

import os
import re
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from ..basics.disk_errors import remedy
from ..basics.errors import InputError, raise_if_any
from ..basics.paths import folded
from .folder import RunFolder, check_length, unwritable
from .records import RECORD, Record, read_record

DEEPEST = 4
"""levels of a run's folder below the root: a LoRA's name may have three parts"""
STAMP = "%Y%m%d-%H%M%S"
STAMPED = re.compile(r"([0-9]{8}-[0-9]{6})(?:-([0-9]{3,200}))?")
"""The names of runs: the time, and a number if there are several of that time. A person may have renamed others."""


def runs_below(root: Path) -> Iterator[Path]:
    """The folders of all runs, the newest last."""
    yield from sorted(_run_folders(root, DEEPEST), key=lambda path: (_order(path), path.name))


def _run_folders(folder: Path, deeper: int) -> Iterator[Path]:
    """The folders with a record below a folder; nothing below such a folder is looked at."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return
    if deeper < DEEPEST - 1 and any(entry.name == RECORD for entry in found):
        yield folder
    elif deeper:
        for entry in found:
            if entry.is_dir():
                yield from _run_folders(folder / entry.name, deeper - 1)


def namesake(root: Path, name: str) -> str | None:
    """The folder of other runs whose name differs from this one in case or Unicode form only; None: there is none."""
    folder, found = root, []
    for part in name.split("/"):
        try:
            there = {each.name for each in folder.iterdir()}
        except OSError:
            return None
        found.append(part if part in there else next((each for each in there if folded(each) == folded(part)), ""))
        if not found[-1]:
            return None
        folder = folder / found[-1]
    return None if found == name.split("/") else "/".join(found)


def earlier_runs(folder: Path) -> Iterator[tuple[Path, Record]]:
    """The runs below a LoRA's folder whose record is one, the newest first.

    Raises:
        InputError: a record cannot be read now; the run must not be passed over.
    """
    try:
        found = [path for path in folder.iterdir() if (path / RECORD).is_file()]
    except OSError:
        return
    for path in sorted(found, key=_order, reverse=True):
        try:
            record = read_record(path)
        except ValueError:
            continue
        except OSError as error:
            problem = (
                f"previous_run: {path / RECORD} cannot be read ({error.strerror or error}): {remedy(error, path)}. "
                "Then queue again, or choose to start anew."
            )
            raise InputError("Train LoRA", [problem]) from error
        yield path, record


def new_run(root: Path, name: str) -> RunFolder:
    """A new folder for a run.

    Raises:
        InputError: it cannot be written.
    """
    folder = path = root / name
    check_length(folder / f"{time.strftime(STAMP)}-000")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        newest = max((_stamp(each.name) for each in folder.iterdir()), default=("", 0))
        # Later runs must sort after earlier ones, even when the clock was set back.
        now = time.strftime(STAMP)
        stamp, first = (now, 1) if now > newest[0] else (newest[0], newest[1] + 1)
        for number in count(first):
            path = folder / (stamp if number == 1 else f"{stamp}-{number:03}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
    except OSError as error:
        raise_if_any("Train LoRA", [unwritable(path, error)])
    return RunFolder(path, root)


def _stamp(name: str) -> tuple[str, int]:
    """(time, number) in a run's name; ("", 0) for another name."""
    found = STAMPED.fullmatch(name)
    return (found[1], int(found[2] or 1)) if found else ("", 0)


def _order(path: Path) -> tuple[str, int]:
    """The (time, number) of a run; of a renamed one the time when it began."""
    if STAMPED.fullmatch(path.name):
        return _stamp(path.name)
    try:
        return time.strftime(STAMP, time.localtime(read_record(path).get("started_at", 0.0))), 0
    except (ValueError, OverflowError, OSError):
        return "", 0
