"""Windows' rule for files that are in use, for the tests: what is open or mapped can be neither replaced, renamed nor
deleted, and no folder that holds it can be renamed.

Files of this process and of its children count, whoever opened them: the kernel tells. Beside that, other programs may
hold chosen files, as an antivirus does. What is tested stays untouched: an audit hook raises, as `disk` does.
"""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ACCESS_DENIED, SHARING_VIOLATION = 5, 32
CHANGES = ("os.rename", "os.remove", "os.rmdir")
"""audit events; replace tells os.rename, unlink os.remove"""


def held(path: str, winerror: int = SHARING_VIOLATION) -> PermissionError:
    """The error that Windows raises for a file that is in use."""
    error = PermissionError(errno.EACCES, "The process cannot access the file", path)
    error.winerror = winerror  # type: ignore[attr-defined]  # an attribute of its own, where the system is another
    return error


@dataclass
class Holder:
    """Another program that holds the files whose paths match a pattern."""

    pattern: str
    left: float
    """how often it is met"""
    winerror: int
    and_read: bool
    met: int = 0


class WindowsFiles:
    """While it is entered, files below a folder are as on Windows."""

    def __init__(self, folder: Path):
        self.folder = os.path.realpath(folder)
        self.holders: list[Holder] = []

    def __enter__(self) -> "WindowsFiles":
        _watching.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _watching.remove(self)

    def hold(
        self, pattern: str, times: float = float("inf"), winerror: int = SHARING_VIOLATION, and_read: bool = False
    ) -> Holder:
        """Another program holds files, and lets none change them.

        Args:
            pattern: of whole paths, as in `*/run.json`.
            times: how often it is in the way.
            and_read: it lets nobody read them either.
        """
        self.holders.append(Holder(pattern, times, winerror, and_read))
        return self.holders[-1]

    def come(self, event: str, paths: list[str], is_read: bool) -> None:
        """Raises PermissionError where Windows would."""
        ours = [path for path in paths if path.startswith(self.folder)]
        for holder in self.holders:
            for path in ours:
                if fnmatch(path, holder.pattern) and holder.met < holder.left and (holder.and_read or not is_read):
                    holder.met += 1
                    raise held(path, holder.winerror)
        if ours and event in CHANGES:
            used = files_in_use(self.folder)
            for path in ours:
                if path in used or (event == "os.rename" and any(each.startswith(f"{path}/") for each in used)):
                    raise held(path, SHARING_VIOLATION if event == "os.rename" else ACCESS_DENIED)


def files_in_use(folder: str) -> set[str]:
    """The files below a folder that this process or a child of it has open or mapped."""
    found: set[str] = set()
    for process in ("self", *_children()):
        found |= set(_links(Path(f"/proc/{process}/fd")))
        found |= mapped_below(folder, process)
    return {path for path in found if path.startswith(f"{folder}/") and os.path.isfile(path)}


def mapped_below(folder: str | Path, process: str = "self") -> set[str]:
    """The files below a folder that a process has mapped."""
    try:
        with open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as file:
            lines = [line for line in file if str(folder) in line]
    except OSError:
        return set()
    return {line[line.index("/") :].rstrip("\n") for line in lines}


def _children() -> list[str]:
    try:
        return [child for task in os.listdir("/proc/self/task") for child in _words(f"/proc/self/task/{task}/children")]
    except OSError:
        return []


def _words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []


def _links(folder: Path) -> Iterator[str]:
    """Where the links in a folder lead; some go while they are listed."""
    for name in os.listdir(folder) if folder.is_dir() else ():
        with suppress(OSError):
            yield os.readlink(folder / name)


_watching: list[WindowsFiles] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """What Python tells before it changes a name or opens a file; what is raised here is raised there."""
    if not _watching or event not in (*CHANGES, "open"):
        return
    if event == "open":
        if not isinstance(arguments[0], str | os.PathLike) or not os.path.lexists(arguments[0]):
            return
        paths, is_read = [(arguments[0], -1)], not arguments[2] & (os.O_WRONLY | os.O_RDWR)
    elif event == "os.rename":
        paths, is_read = [(arguments[0], arguments[2]), (arguments[1], arguments[3])], False
    else:
        paths, is_read = [(arguments[0], arguments[1])], False
    whole = [_whole(path, folder) for path, folder in paths if isinstance(path, str | os.PathLike)]
    for each in list(_watching):
        each.come(event, whole, is_read)


def _whole(path: str | os.PathLike[str], folder: int) -> str:
    """The absolute path of a name in an opened folder (-1: in the working one); its links are not followed."""
    parent = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
    return os.path.normpath(os.path.join(parent, os.fspath(path)))


sys.addaudithook(_audit)
