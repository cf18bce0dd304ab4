"""What an error of the disk means, by its code, and what to do about it."""

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""how libraries in Rust, such as safetensors, tell the system's code"""


@dataclass(frozen=True)
class Kind:
    """Errors with one remedy.

    Args:
        codes: of C (errno).
        windows: of Windows (winerror), which tell more.
        remedy: what to do; {place} is the file or folder.
    """

    codes: tuple[int, ...]
    windows: tuple[int, ...]
    remedy: str


HELD = Kind(
    (errno.EBUSY, errno.ETXTBSY),
    # access denied, sharing and lock violation, folder not empty and deletion pending (of what is held), cloud file in
    # use, user-mapped file
    (5, 32, 33, 145, 303, 391, 1224),
    "another program, such as an antivirus or OneDrive, holds it: close that program or let it leave out {place}; "
    "if there is none, make {place} writable",
)
KINDS = (
    HELD,
    Kind(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        (112, 39, 223),  # disk full, handle disk full, file too large
        "free some space on the disk of {place}",
    ),
    Kind(
        (errno.ENAMETOOLONG,),
        (206, 111),  # filename exceeds range, buffer overflow
        "the path is too long for this system: choose a shorter name, or move ComfyUI nearer to the root of its disk; "
        "on Windows long paths can be switched on",
    ),
    Kind(
        (errno.EROFS,),
        (19,),  # write protect
        "make {place} writable: its disk may only be read",
    ),
    Kind((errno.EACCES, errno.EPERM), (), "make {place} writable: set its rights so that ComfyUI may write there"),
)
IS_WINDOWS = os.name == "nt"
OTHER = "make {place} writable, or look whether its disk is there and sound"


def is_held(error: OSError) -> bool:
    """Whether another program holds the file: a moment later it may be free."""
    return _kind(error) is HELD


def remedy(error: OSError, place: Path | str) -> str:
    """What to do about an error, to be put after a colon; no stop at its end.

    Args:
        place: the file or folder, or a word for it.
    """
    kind = _kind(error)
    return (kind.remedy if kind else OTHER).replace("{place}", str(place))


def told_by_library(error: Exception) -> OSError:
    """The error of the system in the words of another library's error."""
    found = OS_ERROR.search(str(error))
    told = OSError(str(error))
    if found and IS_WINDOWS:
        told.winerror = int(found[1])  # type: ignore[attr-defined]  # Windows alone has it
    elif found:
        told.errno = int(found[1])
    return told


def _kind(error: OSError) -> Kind | None:
    """By Windows' own code where it is told; `open` tells it by EACCES alone that a file is held."""
    winerror = getattr(error, "winerror", None)
    if IS_WINDOWS and winerror is None and error.errno == errno.EACCES:
        return HELD
    for kind in KINDS:
        if winerror in kind.windows if winerror is not None else error.errno in kind.codes:
            return kind
    return None
