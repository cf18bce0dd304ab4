"""The stand-in for Windows' rule about files in use."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from windows_files import WindowsFiles


@contextmanager
def opened(path: Path):
    with path.open("rb"):
        yield


@contextmanager
def mapped(path: Path):
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with content:
        yield


@contextmanager
def opened_by_a_child(path: Path):
    code = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        yield
        child.stdin.close()


CHANGES: list[Callable[[Path], object]] = [
    lambda path: os.replace(path, path.with_name("other")),
    lambda path: os.replace(path.with_name("new"), path),
    lambda path: path.rename(path.with_name("other")),
    lambda path: path.parent.rename(path.parent.with_name("moved")),
    Path.unlink,
    os.remove,
    lambda path: shutil.rmtree(path.parent),
]


@pytest.mark.parametrize("use", [opened, mapped, opened_by_a_child])
def test_what_is_in_use_stays_as_it_is(use, tmp_path: Path, windows_files: WindowsFiles):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("used", "new"):
        (folder / name).write_text(name)
    with use(folder / "used"):
        for change in CHANGES:
            with pytest.raises(PermissionError) as refused:
                change(folder / "used")
            assert refused.value.winerror in (5, 32)  # type: ignore[attr-defined]
            assert (folder / "used").read_text() == "used"
        with (folder / "used").open("a"):  # Python shares what it opens
            pass
    shutil.rmtree(folder)


def test_what_another_program_holds_is_free_later(tmp_path: Path, windows_files: WindowsFiles):
    (tmp_path / "a").write_text("a")
    holder = windows_files.hold("*/a", times=2)
    for change in (Path.unlink, lambda path: path.open("a")):
        with pytest.raises(PermissionError):
            change(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "a" and holder.met == 2
    (tmp_path / "a").unlink()
