"""Locks on files, while other programs hold them."""

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock
from lora_kiln.training.basics import locks
from lora_kiln.training.basics.locks import Held, lock_file


class AsOnWindows(FileLock):
    """There a file that cannot be opened passes for one that is locked."""

    def _acquire(self) -> None:
        with suppress(PermissionError):
            super()._acquire()


@pytest.fixture(params=[FileLock, AsOnWindows])
def hold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Keeps all files named lock from being opened for so many seconds, as a virus scanner does."""
    opened, until = os.open, [0.0]

    def guarded(path: str | Path, *rest: int, **named: int) -> int:
        if Path(path).name == "lock" and time.monotonic() < until[0]:
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
        return opened(path, *rest, **named)

    monkeypatch.setattr(locks, "FileLock", request.param)
    monkeypatch.setattr(os, "open", guarded)
    return lambda seconds: until.__setitem__(0, time.monotonic() + seconds)


def test_a_file_that_is_held_for_a_moment_is_locked(tmp_path: Path, hold: Callable[[float], None]) -> None:
    (tmp_path / "lock").touch()
    hold(0.2)
    lock = lock_file(tmp_path / "lock")
    with pytest.raises(Held):
        lock_file(tmp_path / "lock", 0.0)
    lock.release()


def test_a_file_that_stays_held_is_not_said_to_be_locked(tmp_path: Path, hold: Callable[[float], None]) -> None:
    (tmp_path / "lock").touch()
    hold(60.0)
    with pytest.raises(PermissionError, match="cannot access"):
        lock_file(tmp_path / "lock", 0.1)


def test_a_glance_of_another_process_is_waited_for(tmp_path: Path) -> None:
    other = FileLock(tmp_path / "lock", thread_local=False)
    other.acquire()
    threading.Timer(0.1, other.release).start()
    lock_file(tmp_path / "lock").release()
