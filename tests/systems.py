"""The tests that not every system can run, and why: one table. On Linux all of them run.

On Windows and macOS they are left out, and named at the end of the run, as tests for a GPU are.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

LINUX, POSIX = ("linux",), ("linux", "darwin")


@dataclass(frozen=True)
class Need:
    """What some tests need of the system.

    Args:
        systems: those that have it, as `sys.platform` names them.
        reason: what the others lack.
        tests: files, or `file::test`, below tests/.
        fixtures: all tests that use one of these.
    """

    systems: tuple[str, ...]
    reason: str
    tests: tuple[str, ...] = ()
    fixtures: tuple[str, ...] = ()


NEEDS = (
    Need(LINUX, "mounts of a test's own, /proc", ("test_disk.py", "test_faults.py")),
    Need(LINUX, "open files are counted in /proc", ("training/run/test_leaks.py",)),
    Need(
        LINUX, "open and mapped files are found in /proc", ("test_windows_files.py", "training/run/test_held_files.py"),
        ("windows_files",),
    ),
    Need(LINUX, "Triton, with its interpreter", ("training/test_kernels.py",)),
    Need(LINUX, "a bound on this process's memory", (), ("at_most_150_mb_more", "at_most_400_mb_more")),
    Need(
        LINUX, "a copy of Python that reads a path file beside it",
        (
            "test_dev.py::test_a_portable_python_runs_our_programs",
            "training/data/test_hub.py::test_a_portable_python_downloads_with_the_packages_of_this_process",
        ),
    ),
    Need(
        LINUX, "names of files that are not Unicode",
        ("training/data/test_picture_folder.py::test_a_name_that_is_not_unicode_is_said",),
    ),
    Need(
        LINUX, "names that differ in case alone are two files",
        (
            "training/data/test_caption_files.py::test_pictures_that_differ_in_case_alone_keep_their_own_captions",
            "training/data/test_caption_files.py::test_a_second_caption_of_a_picture_is_said",
            "training/data/test_caption_files.py::test_an_entry_of_the_exact_path_goes_first",
        ),
    ),
    Need(
        POSIX, "a bound on the length of files, which stands for a full disk",
        (
            "training/data/test_cache.py::test_on_a_full_disk_it_goes_on_in_memory",
            "training/data/test_cache.py::test_a_disk_that_is_full_from_the_start",
            "training/lora/test_export.py::test_a_disk_that_is_full_is_said_and_leaves_nothing",
            "training/run/test_faults.py::test_files_that_break_off_while_they_are_written_lose_nothing",
        ),
    ),
)  # fmt: skip


def lacking(test: str, fixtures: Collection[str] = (), system: str = sys.platform) -> str:
    """What this system lacks for a test; empty: nothing.

    Args:
        test: its file below tests/, such as "training/run/test_leaks.py", or that and ::name.
    """
    file, _, name = test.partition("::")
    names = {file, f"{file}::{name.partition('[')[0]}"}
    for need in NEEDS:
        if system not in need.systems and (names & {*need.tests} or {*fixtures} & {*need.fixtures}):
            return f"this system ({system}) lacks: {need.reason}"
    return ""


def below_tests(path: Path) -> str:
    """A file's path below tests/, as the table names it."""
    tests = Path(__file__).resolve().parent
    path = path.resolve()
    return path.relative_to(tests).as_posix() if path.is_relative_to(tests) else path.as_posix()
