"""Names of files and folders that strangers give: one rule for all of them, reading and writing."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath

LONGEST_PART = 200
"""bytes of one name; file systems take 255, and numbers and endings are put behind it"""
LONGEST = 1000
"""bytes of a path"""
RESERVED = '\\:*?"<>|'
SLASHES = "\u2044\u2215\u2216\u29f5\u29f8\u29f9"
"""look like / and \\, and no normal form of Unicode makes them so"""
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d|CONIN\$|CONOUT\$) *(\..*)?", re.IGNORECASE)
"""what Windows takes for a device, whatever the ending"""
JOINERS = "\u200c\u200d"
"""not seen, but Persian and emoji are written with them"""
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what is not seen: controls, directions of writing, halves of characters"""


class PathRefused(ValueError):
    """A name that may not be used; the message goes on from `<field> is <name>, `."""


class OutsideRefused(PathRefused):
    """It leaves the folders it must stay in."""


def check_parts(name: object) -> tuple[str, ...]:
    """The parts of a relative path such as people/anna.

    What is dangerous on one system is refused on all, and so is what a normal form of Unicode turns into it.

    Raises:
        PathRefused: it is no such path.
    """
    if not isinstance(name, str):
        raise PathRefused("which is no text: write a name, as in people/anna.")
    parts = tuple(name.split("/"))
    _check(parts)
    return parts


def resolve(name: object, roots: Sequence[Path]) -> Path:
    """A path by its name below the first of some folders, or by its absolute path in any of them.

    Args:
        roots: absolute.

    Raises:
        OutsideRefused: it lies in none of them, by itself or by where its links lead.
        PathRefused: as `check_parts`.
    """
    if not isinstance(name, str):
        raise PathRefused("which is no text: write a path, as in people/anna.")
    path = Path(os.path.abspath(roots[0] / name.replace("\0", "?")))
    above = [root for root in roots if path.is_relative_to(root)]
    if not above:
        raise OutsideRefused(_outside(roots))
    if os.path.isabs(name):
        parts = PurePath(name).parts
        _check(parts[len(above[-1].parts) :])
    else:
        _check(name.split("/"))
    if leads_out(path, roots):
        raise OutsideRefused(f"a link to {os.path.realpath(path)}, {_outside(roots)}")
    return path


def leads_out(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path lies in none of some folders once its links are followed."""
    real = PurePath(os.path.realpath(path))
    return not any(real.is_relative_to(os.path.realpath(root)) for root in roots)


def _outside(roots: Sequence[Path]) -> str:
    return f"which lies outside the folders that may be read or written: {', '.join(map(str, roots))}."


def _check(parts: Sequence[str]) -> None:
    if len("/".join(parts).encode("utf-8", "surrogatepass")) > LONGEST:
        raise PathRefused(f"which is longer than {LONGEST} bytes: give the folders shorter names.")
    for part in parts:
        _check_part(part)


def _check_part(part: str) -> None:
    if not part or part in (".", ".."):
        raise PathRefused(f"with the part {part!r}: write the names of folders alone, as in people/anna.")
    for character in part:
        if unicodedata.category(character) in HIDDEN and character not in JOINERS:
            raise PathRefused(f"with the character {character!r}, which is not seen: rename it.")
    if len(part.encode()) > LONGEST_PART:
        raise PathRefused(f"with a part of more than {LONGEST_PART} bytes: give it a shorter name.")
    plain = unicodedata.normalize("NFKC", part)
    if bad := {*RESERVED, "/", *SLASHES} & {*part, *plain}:
        listed = " ".join(sorted(bad))
        raise PathRefused(rf'with {listed} in it, by itself or in disguise: use no / \ : * ? " < > | in a name.')
    if plain != plain.strip() or plain.endswith("."):
        raise PathRefused(f"with the part {part!r}, which begins or ends with a space or ends with a dot: rename it.")
    if DEVICES.fullmatch(plain):
        raise PathRefused(f"with the part {part!r}, which Windows takes for a device: rename it.")
