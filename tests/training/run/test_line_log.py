"""A file of lines that cannot be written at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_kiln.training.run.line_log import LineLog

from disk import files_of_at_most
from windows_files import WindowsFiles


def test_lines_that_a_full_disk_cuts_are_whole_once_there_is_room(tmp_path: Path):
    log = LineLog(tmp_path / "a")
    log.add("first")
    log.write()
    log.add("second")
    log.add("third")
    with files_of_at_most(9), pytest.raises(OSError):
        log.write()
    assert log.path.read_text() == "first\nsec"
    log.add("fourth")
    log.write()
    log.write()
    assert log.path.read_text() == "first\nsecond\nthird\nfourth\n"


def test_a_line_that_a_full_disk_cuts_is_kept_when_the_file_is_begun_anew(tmp_path: Path):
    log = LineLog(tmp_path / "a")
    log.add("first")
    with files_of_at_most(3), pytest.raises(OSError):
        log.write()
    assert log.path.read_text() == "fir" and log.unwritten == b"first\n"
    log.begin_anew([log.unwritten.decode().strip(), "second"])
    log.write()
    log.add("third")
    log.write()
    assert log.path.read_text() == "first\nsecond\nthird\n"


def test_lines_of_a_file_that_cannot_be_begun_anew_wait(tmp_path: Path, windows_files: WindowsFiles):
    log = LineLog(tmp_path / "a")
    log.path.write_text("old\n")
    log.begin_anew(["new"])
    log.add("later")
    log.write(waits=False)
    assert log.path.read_text() == "old\n"
    windows_files.hold("*/a", times=3)
    log.write()
    assert log.path.read_text() == "new\nlater\n" and log.unwritten == b""


def test_the_file_is_open_only_while_it_is_written(tmp_path: Path, windows_files: WindowsFiles):
    log = LineLog(tmp_path / "a")
    log.add("first")
    log.write()
    log.path.unlink()
