"""Walking folders."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .paths import leads_out

SETTLED = 2.0
"""seconds after which a folder's or file's time of change tells every change (FAT counts in twos)"""
_listings: dict[tuple[str, tuple[str, ...]], tuple[int, tuple[bool, list[str]]]] = {}
"""(folder, endings) -> its time of change in ns, and what `_listing` said then"""


def files_below(
    root: Path, deepest: int | None = None, within: Sequence[Path] = (), strays: list[Path] | None = None
) -> Iterator[Path]:
    """Every file in a folder and the folders in it, in name order; hidden ones left out.

    Links are followed, each folder once, unless they lead out: what a workflow reads, strangers may see.

    Args:
        deepest: levels of folders below root to go into; None = all.
        within: the folders that links may lead into; root alone where there are none.
        strays: the links that lead out are added to it.
    """
    allowed, strays = within or (root,), [] if strays is None else strays

    def stays(path: Path, may_be_link: bool) -> bool:
        if may_be_link and leads_out(path, allowed):
            strays.append(path)
            return False
        return True

    seen: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        here = Path(folder)
        is_new = os.path.realpath(folder) not in seen
        seen.add(os.path.realpath(folder))
        depth = len(here.relative_to(root).parts)
        goes_on = is_new and (deepest is None or depth < deepest)
        shown = (name for name in sorted(names) if goes_on and not name.startswith("."))
        names[:] = [name for name in shown if stays(here / name, True)]  # Windows' junctions are no links to Python
        found = (here / name for name in sorted(files) if is_new and not name.startswith("."))
        yield from (path for path in found if stays(path, path.is_symlink()))


def folders_with(root: Path, endings: Sequence[str], deepest: int, within: Sequence[Path] = ()) -> list[Path]:
    """Root and the folders below it that have a file of one of the endings in or below them, in name order.

    Hidden ones are left out. Only folders that changed since the last call are listed again: it is cheap to call often.

    Args:
        deepest: levels of folders below root to go into.
        within: the folders that links may lead into; root alone where there are none.
    """
    found: list[Path] = []
    _holds(root, tuple(endings), deepest, set(), found, within or (root,))
    return sorted(found)


def is_settled(mtime_ns: int) -> bool:
    """Whether a time of change is old enough to tell any later change from it."""
    return not 0 <= time.time() - mtime_ns / 1e9 < SETTLED


def _holds(
    folder: Path, endings: tuple[str, ...], deeper: int, seen: set[str], found: list[Path], within: Sequence[Path]
) -> bool:
    """Whether the folder holds such a file in itself or below; all that do are added to found."""
    real = os.path.realpath(folder)
    if real in seen or leads_out(folder, within):
        return False
    seen.add(real)
    holds, names = _listing(folder, endings)
    if deeper:
        below = [_holds(folder / name, endings, deeper - 1, seen, found, within) for name in names]
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
