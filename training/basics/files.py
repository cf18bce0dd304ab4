"""Atomic writes: a reader or a crash meets a file's old or its new content, never a part of it."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""Errors of file systems that cannot sync a file; it is written all the same."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path of a new file beside `path`; on success it is synced to disk and replaces `path`, else deleted.

    A symbolic link at either place is removed or replaced, never followed.

    Raises:
        OSError: the disk is full, the folder read-only ...
    """
    unfinished = path.with_name(f".{path.name}.writing")
    unfinished.unlink(missing_ok=True)  # a link there would be written through
    try:
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            unfinished.unlink()


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir():
        with suppress(OSError):  # Windows cannot open folders, and some network file systems cannot sync them
            _sync(path, os.O_RDONLY)
    else:
        try:
            _sync(path, os.O_RDWR)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
