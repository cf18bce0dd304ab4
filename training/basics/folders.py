"""Listing folders and their subfolders."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .paths import is_unicode, leads_out

TICK = 10_000_000
"""nanoseconds; the times of FAT and exFAT are multiples of it, and a folder's may stay when its files change"""
SMALL = 65_536
"""bytes of a file that is read where its time tells too little"""
STABLE_AFTER = 2.0
"""seconds; a modification time older than this changes with every further change (FAT has a resolution of 2 s)"""
SYSTEM_FOLDERS = (
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
    *("__macosx", "$recycle.bin", "system volume information", "lost+found"),
)
"""lower-case names of folders that network drives and systems keep thumbnails, copies and deleted files in"""
_listings: dict[tuple[str, tuple[str, ...]], tuple[int, tuple[bool, list[str]]]] = {}
"""(folder, endings) -> its modification time in ns, and the result of `_listing` then"""


def files_below(
    root: Path, deepest: int | None = None, within: Sequence[Path] = (), left_out: list[Path] | None = None
) -> Iterator[Path]:
    """The files in a folder and its subfolders, in name order, without hidden ones and those in SYSTEM_FOLDERS.

    Links are followed, each folder once, but not out of the allowed folders: a workflow may come from a stranger.

    Args:
        deepest: levels of subfolders to descend; None = all.
        within: folders that links may lead into; none = root alone.
        left_out: receives the links that lead out.
    """
    allowed, left_out = within or (root,), [] if left_out is None else left_out

    def stays(path: Path, may_be_link: bool) -> bool:
        if may_be_link and leads_out(path, allowed):
            left_out.append(path)
            return False
        return True

    seen: set[str] = set()
    for folder, names, files in os.walk(root, followlinks=True):
        here = Path(folder)
        is_new = os.path.realpath(folder) not in seen
        seen.add(os.path.realpath(folder))
        depth = len(here.relative_to(root).parts)
        goes_on = is_new and (deepest is None or depth < deepest)
        visible = (name for name in sorted(names) if goes_on and is_a_persons(name))
        names[:] = [name for name in visible if stays(here / name, True)]  # is_symlink() misses Windows' junctions
        found = (here / name for name in sorted(files) if is_new and not name.startswith("."))
        yield from (path for path in found if stays(path, path.is_symlink()))


def folders_with(root: Path, endings: Sequence[str], deepest: int, within: Sequence[Path] = ()) -> list[Path]:
    """Root and its subfolders that have, at any depth, a file with one of the endings; in name order, no hidden ones.

    Calls are cheap: only folders that changed since the last call are listed again, and those with coarse times.

    Args:
        endings: lower case, such as ".png".
        deepest: levels of subfolders to descend.
        within: folders that links may lead into; none = root alone.
    """
    found: list[Path] = []
    _collect(root, tuple(endings), deepest, set(), found, within or (root,))
    return sorted(found)


def is_a_persons(folder: str) -> bool:
    """Whether a folder of this name holds what a person put there."""
    return not folder.startswith(".") and folder.lower() not in SYSTEM_FOLDERS


def file_state(stat: os.stat_result) -> tuple[int, ...]:
    """Numbers of a file that are others after it was changed, or exchanged for another of its size and time."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def fingerprint(path: Path) -> tuple[int | str, ...]:
    """`file_state` of a file; of a small one with a coarse time a digest of its content too.

    Raises:
        OSError: it cannot be read.
    """
    stat = path.stat()
    if stat.st_mtime_ns % TICK or stat.st_size > SMALL:
        return file_state(stat)
    return *file_state(stat), hashlib.sha256(path.read_bytes()).hexdigest()


def is_stable(mtime_ns: int) -> bool:
    """Whether a modification time is old enough that any later change will alter it. FAT's may lie ahead a little."""
    return abs(time.time() - mtime_ns / 1e9) >= STABLE_AFTER


def _collect(
    folder: Path, endings: tuple[str, ...], deeper: int, seen: set[str], found: list[Path], within: Sequence[Path]
) -> bool:
    """Adds the folder and those of its subfolders that have such a file to `found`; returns whether it has one."""
    real = os.path.realpath(folder)
    if real in seen or leads_out(folder, within):
        return False
    seen.add(real)
    holds, names = _listing(folder, endings)
    if deeper:
        below = [_collect(folder / name, endings, deeper - 1, seen, found, within) for name in names]
        holds = holds or any(below)
    if holds:
        found.append(folder)
    return holds


def _listing(folder: Path, endings: tuple[str, ...]) -> tuple[bool, list[str]]:
    """(whether the folder itself has a file with one of the endings, names of its subfolders)."""
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
                    names += [entry.name] if is_a_persons(entry.name) and is_unicode(entry.name) else []
                elif not holds:
                    holds = entry.name.lower().endswith(endings)
    except OSError:  # missing or unreadable
        return False, []
    if is_stable(changed) and changed % TICK:
        _listings[str(folder), endings] = (changed, (holds, sorted(names)))
    return holds, sorted(names)
