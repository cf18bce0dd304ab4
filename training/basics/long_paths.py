"""Paths that are too long for the system or the disk: tried before work begins, not met at its end.

Windows takes 259 characters unless long paths are switched on, for a folder 247; a part of a name may have 255 bytes
elsewhere, on an encrypted disk 143. Only trying tells.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

SHORT = 200
"""characters of a path that every system takes"""
SHORT_PART = 140
"""bytes of one name that every disk takes"""
WINDOWS_ERRORS = (3, 206)
"""path not found, which is said of long ones too; filename exceeds range"""
WINDOWS_LIMIT = 259
UNFINISHED = f".{'0' * 16}.writing"
"""as `files.unfinished_file` names a file while it is written"""


class TooLong(OSError):
    """A path that is too long here; the message says its length, the limit and what to do."""

    def __init__(self, message: str):
        super().__init__(errno.ENAMETOOLONG, message)
        self.message = message

    def __str__(self) -> str:
        return self.message


def try_length(path: Path) -> None:
    """Makes a file beside a path, under as long a name, and deletes it and all folders it made for that.

    What else keeps a file from being made is left to who makes it.

    Args:
        path: absolute; of a file that will be written under the name of an unfinished one first.

    Raises:
        TooLong: the path is too long.
    """
    if len(path.name) < len(UNFINISHED):
        path = path.with_name(UNFINISHED)
    if len(str(path)) <= SHORT and all(len(os.fsencode(part)) <= SHORT_PART for part in path.parts):
        return
    missing = [folder for folder in path.parents if not os.path.exists(folder)]
    trial = path.with_name(f".{path.name[:-9]}.writing")
    try:
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
        os.close(os.open(trial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        is_told = error.errno == errno.ENAMETOOLONG or getattr(error, "winerror", None) in WINDOWS_ERRORS
        if is_told or isinstance(error, FileNotFoundError):
            raise TooLong(_words(path, error)) from error
    finally:
        with suppress(OSError):
            trial.unlink(missing_ok=True)
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _words(path: Path, error: OSError) -> str:
    shorter = "choose a shorter name, or move ComfyUI to a folder nearer to the root of its disk"
    if os.name == "nt" or hasattr(error, "winerror"):
        return (
            f"the path {path} has {len(str(path))} characters, and Windows takes {WINDOWS_LIMIT} here: {shorter}, or "
            r"switch long paths on (LongPathsEnabled = 1 in HKEY_LOCAL_MACHINE\SYSTEM\CurrentControlSet\Control"
            r"\FileSystem) and restart."
        )
    longest = max(path.parts, key=lambda part: len(os.fsencode(part)))
    return (
        f"the path {path} has {len(os.fsencode(path))} bytes, {len(os.fsencode(longest))} of them in {longest}, and "
        f"{_limits(path)}: {shorter}."
    )


def _limits(path: Path) -> str:
    """What the disk says that it takes."""
    for folder in path.parents:
        with suppress(OSError, ValueError):
            return (
                f"this disk takes {os.pathconf(folder, 'PC_PATH_MAX') - 1} of a path and "
                f"{os.pathconf(folder, 'PC_NAME_MAX')} of one name"
            )
    return "this disk does not take it"
