"""Locks between two processes: one run folder is open in one ComfyUI alone."""

from __future__ import annotations

import subprocess
import sys
import time

from check.ground import Ground
from check.outcome import FailedError, NotThereError

HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire(timeout=10)
print("held", flush=True)
sys.stdin.read()
"""
PATIENCE = 10.0
"""seconds until a lock of a process that was killed must be free"""


def two_processes(ground: Ground) -> str:
    """Whether another process's lock is seen, and is gone when that process is killed."""
    from filelock import FileLock, Timeout

    path = ground.folder / "lock"
    command = [sys.executable, "-B", "-c", HOLDER, str(path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lock = FileLock(path)
    try:
        if holder.stdout is None or holder.stdout.readline().strip() != b"held":
            lines = (holder.stderr.read() if holder.stderr else b"").decode(errors="replace").strip().splitlines()
            raise NotThereError(f"the other process got no lock: {lines[-1] if lines else 'it said nothing'}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            pass
        else:
            raise FailedError("both processes got the lock: never use one output folder from two ComfyUIs")
        holder.kill()
        holder.wait()
        started = time.monotonic()
        lock.acquire(timeout=PATIENCE)
        return f"seen, and free {time.monotonic() - started:.2f} s after its process was killed"
    finally:
        holder.kill()
        holder.communicate()
        lock.release()
