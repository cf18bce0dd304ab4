"""Files that are there with their old or their new content, never with part of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives where to write a file that is there with its old or its new content, never with part of it.

    Raises:
        OSError: the disk is full, the folder read-only ...
    """
    unfinished = path.with_name(f".{path.name}.writing")
    unfinished.unlink(missing_ok=True)  # a link that lies there would be written through
    try:
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir():
        with suppress(OSError):  # Windows opens no folders, and some network file systems sync none: all is written
            _sync(path, os.O_RDONLY)
    else:
        _sync(path, os.O_RDWR)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
