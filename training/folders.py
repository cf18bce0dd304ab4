"""Walking folders."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

SETTLED = 2.0
"""seconds after which a folder's or file's time of change tells every change (FAT counts in twos)"""
_listings: dict[tuple[str, tuple[str, ...]], tuple[int, tuple[bool, list[str]]]] = {}
"""(folder, endings) -> its time of change in ns, and what `_listing` said then"""


def files_below(root: Path, deepest: int | None = None) -> Iterator[Path]:
    """Every file in a folder and the folders in it, in name order; hidden ones left out.

    Links to folders are followed, each folder once.

    Args:
        deepest: levels of folders below root to go into; None = all.
    """
    seen: set[str] = set()
    for path, names, files in os.walk(root, followlinks=True):
        here = Path(path)
        is_new = os.path.realpath(path) not in seen
        seen.add(os.path.realpath(path))
        depth = len(here.relative_to(root).parts)
        goes_on = is_new and (deepest is None or depth < deepest)
        names[:] = sorted(name for name in names if goes_on and not name.startswith("."))
        if is_new:
            yield from (here / name for name in sorted(files) if not name.startswith("."))


def folders_with(root: Path, endings: Sequence[str], deepest: int) -> list[Path]:
    """Root and the folders below it that have a file of one of the endings in or below them, in name order.

    Hidden ones are left out. Only folders that changed since the last call are listed again: it is cheap to call often.

    Args:
        deepest: levels of folders below root to go into.
    """
    found: list[Path] = []
    _holds(root, tuple(endings), deepest, set(), found)
    return sorted(found)


def is_settled(mtime_ns: int) -> bool:
    """Whether a time of change is old enough to tell any later change from it."""
    return not 0 <= time.time() - mtime_ns / 1e9 < SETTLED


def _holds(folder: Path, endings: tuple[str, ...], deeper: int, seen: set[str], found: list[Path]) -> bool:
    """Whether the folder holds such a file in itself or below; all that do are added to found."""
    real = os.path.realpath(folder)
    if real in seen:
        return False
    seen.add(real)
    holds, names = _listing(folder, endings)
    if deeper:
        below = [_holds(folder / name, endings, deeper - 1, seen, found) for name in names]
        holds = holds or any(below)
    if holds:
        found.append(folder)
    return holds


def _listing(folder: Path, endings: tuple[str, ...]) -> tuple[bool, list[str]]:
    """(whether a file of one of the endings lies in it, the folders in it)."""
    try:
        changed = os.stat(folder).st_mtime_ns
        known = _listings.get((str(folder), endings))
        if known and known[0] == changed:
            return known[1]
        holds, names = False, []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    names.append(entry.name)
                elif not holds:
                    holds = entry.name.lower().endswith(endings)
    except OSError:  # not there, or not ours to read: it offers nothing
        return False, []
    if is_settled(changed):
        _listings[str(folder), endings] = (changed, (holds, sorted(names)))
    return holds, sorted(names)
