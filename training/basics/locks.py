"""Locks on files: what another process has locked is told from what a virus scanner or a glance holds for a moment."""

import os
import time
from pathlib import Path

from filelock import FileLock, Timeout

PATIENCE = 5.0
"""seconds; on Windows a virus scanner, an indexer or OneDrive may keep a file from being opened for so long"""
GLANCE = 0.5
"""seconds; who looks whether a file is locked locks it for less"""
PAUSE = 0.02


class Held(OSError):
    """Another process has locked the file."""


def lock_file(path: Path, patience: float | None = None) -> FileLock:
    """Locks a file for this process.

    Args:
        patience: seconds after which it is given up; None = PATIENCE.

    Raises:
        Held: another process has locked it.
        OSError: it cannot be opened; a PermissionError if another program holds it.
    """
    lock, start = FileLock(path), time.monotonic()
    patience = PATIENCE if patience is None else patience
    while True:
        try:
            lock.acquire(timeout=0)
            return lock
        except Timeout:
            refusal = _refusal(path)
        except PermissionError as error:
            refusal = error
        longest = min(GLANCE, patience) if isinstance(refusal, Held) else patience
        if time.monotonic() - start >= longest:
            raise refusal
        time.sleep(PAUSE)


def _refusal(path: Path) -> OSError:
    """Why a file cannot be locked. On Windows FileLock takes one that it cannot open for one that is locked.

    What is locked can be opened all the same.
    """
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError as error:
        return error
    return Held(f"another process has locked {path}")
