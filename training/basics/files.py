"""Atomic writes: a reader or a crash meets a file's old or its new content, never a part of it.

What a killed process leaves unfinished is deleted later. On Windows a file that another program has open, such as an
antivirus, an indexer or our page, can be neither replaced nor deleted: that is waited for.
"""

import errno
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .disk_errors import is_held
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
PATIENCE_SECONDS = 5.0
"""longest wait for a file that another program holds"""
SHORTEST_WAIT, LONGEST_WAIT = 0.01, 0.5
"""seconds between two attempts, each twice as long as the one before"""

Result = TypeVar("Result")


@dataclass
class _Patience:
    left: float
    """seconds"""


_shared: ContextVar[_Patience | None] = ContextVar("_shared", default=None)


@contextmanager
def one_patience() -> Iterator[None]:
    """All files within are waited for no longer, taken together, than one file alone would be."""
    token = _shared.set(_Patience(PATIENCE_SECONDS))
    try:
        yield
    finally:
        _shared.reset(token)


def patiently(act: Callable[[], Result]) -> Result:
    """Calls `act`, again and again for some seconds while a file that it needs is held by another program.

    Raises:
        OSError: it is still held; or, at once, whatever else `act` raises.
    """
    patience, wait = _shared.get() or _Patience(PATIENCE_SECONDS), SHORTEST_WAIT
    while True:
        try:
            return act()
        except OSError as error:
            if not is_held(error) or wait > patience.left:
                raise
        time.sleep(wait)
        patience.left -= wait
        wait = min(2 * wait, LONGEST_WAIT)


def replace(unfinished: Path, path: Path) -> None:
    """Moves a file to a name, which it takes from another file."""
    patiently(lambda: os.replace(unfinished, path))


def delete(path: Path) -> None:
    """Deletes a file, if it is there."""
    patiently(lambda: path.unlink(missing_ok=True))


def delete_folder(folder: Path) -> None:
    """Deletes a folder. What cannot be deleted stays, without an error; links are not followed."""
    with suppress(OSError):
        patiently(lambda: shutil.rmtree(folder))
    shutil.rmtree(folder, ignore_errors=True)


def read(path: Path) -> bytes:
    """The content of a file."""
    return patiently(path.read_bytes)


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
        replace(unfinished, path)
        sync(path.parent)


@contextmanager
def unfinished_file(folder: Path) -> Iterator[Path]:
    """Yields the path of a new file in a folder, which no other process writes; it is deleted if left there."""
    unfinished = folder / f".{secrets.token_hex(8)}.writing"
    try:
        yield unfinished
    finally:
        with suppress(OSError):
            delete(unfinished)


def sweep_unfinished(folder: Path) -> None:
    """Deletes the files in a folder that `atomic_write` of a killed process left there."""
    for path in folder.glob(".*.writing"):
        with suppress(OSError):
            if not path.is_dir() and time.time() - path.lstat().st_mtime > UNTOUCHED_SECONDS:
                path.unlink()


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yields a new folder in `parent`, which is deleted at the end.

    What cannot be deleted then, and what a crash leaves, is deleted by `sweep_scratch_folders`. Nothing is waited for:
    it is entered where the server answers requests.

    Raises:
        OSError: the disk is full, `parent` read-only ...
    """
    folder, lock = Path(tempfile.mkdtemp(prefix=prefix, dir=parent)), None
    try:
        with suppress(OSError, NotImplementedError):  # a file system without locks
            lock = lock_file(folder / "lock", patience=0.0)
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
            replace(unfinished, path)
        except OSError:
            with suppress(OSError):
                delete(path)
            raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir():
        with suppress(OSError):  # Windows cannot open folders, and some network file systems cannot sync them
            _sync(path, os.O_RDONLY)
    else:
        try:
            patiently(lambda: _sync(path, os.O_RDWR))
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
