"""The disks that the tests fill up, tried with a small program in place of the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from disk import SmallDisk

WRITES = """
import sys
for line in sys.stdin:
    try:
        with open(line.strip(), "wb") as file:
            file.write(bytes(2 * int(sys.argv[1])))
        print("written", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""
"""writes a large file at each path that it is told, and says how that went"""


class Writer:
    """That program on a small disk."""

    def __init__(self, disk: SmallDisk):
        command = [*disk.through, sys.executable, "-c", WRITES, str(disk.LONGEST)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        disk.pid = self.process.pid

    def write(self, path: Path) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(path, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()


@pytest.fixture(params=[True, False], ids=["as the system allows", "a bound on its files"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[SmallDisk, Writer]]:
    made = SmallDisk(tmp_path / "output", "runs/shut", may_mount=request.param)
    assert request.param or not made.is_mounted
    writer = Writer(made)
    try:
        yield made, writer
    finally:
        writer.process.communicate()


def test_a_disk_is_full_until_it_is_emptied(disk: tuple[SmallDisk, Writer]) -> None:
    small, writer = disk
    assert writer.write(small.folder / "before") == "written"
    small.fill()
    assert writer.write(small.folder / "full") in ("No space left on device", "File too large")
    small.empty()
    assert writer.write(small.folder / "after") == "written"
    assert (small.seen / "after").stat().st_size == 2 * small.LONGEST


def test_nothing_is_written_into_the_shut_folder(disk: tuple[SmallDisk, Writer]) -> None:
    small, writer = disk
    assert writer.write(small.folder / "runs" / "shut" / "a") in ("Read-only file system", "Not a directory")
