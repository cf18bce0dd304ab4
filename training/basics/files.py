"""Atomic writes: a reader or a crash meets a file's old or its new content, never a part of it.

What a killed process leaves unfinished is deleted later.
"""

import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .locks import lock_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
"""Errors of file systems that cannot sync a file; it is written all the same."""

UNTOUCHED_SECONDS = 3600.0
"""age of an unfinished file at which nobody writes it any more"""
LOCKED_AFTER_SECONDS = 60.0
"""age of a scratch folder by which its process has locked it"""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields the path of a new file beside `path`; on success it is synced to disk and replaces `path`, else deleted.

    A symbolic link in place of `path` is replaced, never followed.

    Raises:
        OSError: the disk is full, the folder read-only ...
    """
    with unfinished_file(path.parent) as unfinished:
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)


@contextmanager
def unfinished_file(folder: Path) -> Iterator[Path]:
    """Yields the path of a new file in a folder, which no other process writes; it is deleted if left there."""
    unfinished = folder / f".{secrets.token_hex(8)}.writing"
    try:
        yield unfinished
    finally:
        with suppress(OSError):
            unfinished.unlink()


def sweep_unfinished(folder: Path) -> None:
    """Deletes the files in a folder that `atomic_write` of a killed process left there."""
    for path in folder.glob(".*.writing"):
        with suppress(OSError):
            if not path.is_dir() and time.time() - path.lstat().st_mtime > UNTOUCHED_SECONDS:
                path.unlink()


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yields a new folder in `parent`, which is deleted at the end.

    What cannot be deleted then, and what a crash leaves, is deleted by `sweep_scratch_folders`.

    Raises:
        OSError: the disk is full, `parent` read-only ...
    """
    folder, lock = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)), None
    try:
        with suppress(OSError, NotImplementedError):  # a file system without locks
            lock = lock_file(folder / "lock", patience=1.0)
        yield folder
    finally:
        with suppress(OSError):
            if lock is not None:
                lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch_folders(parent: Path, prefix: str) -> None:
    """Deletes the scratch folders in `parent` that no process has locked."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError, NotImplementedError):  # locked; gone meanwhile; no locks here
            touched = max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
            if folder.is_symlink() or time.time() - touched < LOCKED_AFTER_SECONDS:
                continue
            lock_file(folder / "lock", patience=0.0).release()
            shutil.rmtree(folder, ignore_errors=True)


def claim_name(unfinished: Path, path: Path) -> None:
    """Moves a whole file to a name that nothing has, not even a file that another process names at the same time.

    Raises:
        FileExistsError: something has the name.
        OSError: the folder is read-only ...
    """
    sync(unfinished)
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: an empty file claims the name
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            os.replace(unfinished, path)
        except OSError:
            path.unlink()
            raise
    sync(path.parent)


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
        _to_disk(handle)
    finally:
        os.close(handle)


def _to_disk(handle: int) -> None:
    """`os.fsync`, which on macOS stops at the disk's own memory: a loss of power there would lose the file."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and full_sync is not None:
        with suppress(OSError):  # some network file systems do not have it
            fcntl.fcntl(handle, full_sync)
            return
    os.fsync(handle)
