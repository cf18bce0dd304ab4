"""Names of files and folders that come from a workflow, a web page or a stranger's computer: one rule for all.

`check_parts` and `resolve` refuse a dangerous name; `safe_part` replaces the dangerous characters in it;
`visible_parts` takes the path of a file that may be there already, under any name that its system allows.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath

LONGEST_PART = 200
"""bytes of one name; file systems take 255, and numbers and endings are appended to it"""
LONGEST = 1000
"""bytes of a path"""
RESERVED = '\\:*?"<>|'
"""characters with a meaning in paths or shells of some system"""
SLASHES = "\u2044\u2215\u2216\u29f5\u29f8\u29f9"
"""characters that look like / and \\, and that Unicode does not normalise to them"""
DEVICES = re.compile(r"(CON|PRN|AUX|NUL|COM\d|LPT\d|CONIN\$|CONOUT\$) *(\..*)?", re.IGNORECASE)
"""names of devices on Windows, with any ending; after NFKC normalisation, as Windows takes COM¹ for COM1"""
JOINERS = "\u200c\u200d"
"""invisible characters that Persian and emoji need"""
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories: control and format characters, surrogates, line and paragraph separators"""


class PathRefused(ValueError):
    """A name that may not be used; the message continues the phrase `<field> is <name>, `."""


class OutsideRefused(PathRefused):
    """A path outside the allowed folders."""


def check_parts(name: object) -> tuple[str, ...]:
    """The parts of a relative path such as people/anna.

    A name that is dangerous on one operating system is refused on all, also if it is so only after Unicode
    normalisation.

    Raises:
        PathRefused: the name may not be used.
    """
    if not isinstance(name, str):
        raise PathRefused("which is no text: write a name, as in people/anna.")
    parts = tuple(name.split("/"))
    _check(parts)
    return parts


def resolve(name: object, roots: Sequence[Path]) -> Path:
    """The path of a name: relative to the first root, or absolute and inside any root.

    Args:
        roots: allowed folders, absolute.

    Raises:
        OutsideRefused: the path, or the target of its links, is inside none of the roots.
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
    """Whether a path, with its links resolved, is inside none of the roots."""
    real = PurePath(os.path.realpath(path))
    return not any(real.is_relative_to(os.path.realpath(root)) for root in roots)


class LinkLeadsOut(OSError):
    """A link that is not followed."""


def raise_if_leading_out(path: Path, folder: Path) -> None:
    """Raises LinkLeadsOut if a link leads from a path below a folder out of that folder."""
    if leads_out(path, [folder]):
        raise LinkLeadsOut(f"a link leads from {path} out of its folder; it is not followed")


def visible_parts(name: str) -> tuple[str, ...] | None:
    """The parts of a relative path without `.`, `..`, empty or hidden ones; None for any other path.

    On Windows no part is a device, or ends with what the system leaves away.
    """
    parts = tuple(name.split("/"))
    is_plain = all(part and not part.startswith(".") for part in parts) and "\0" not in name
    if os.name == "nt" and (
        "\\" in name or ":" in name or any(_is_device(part) or part.endswith((".", " ")) for part in parts)
    ):
        return None
    return parts if is_plain else None


def folded(name: str) -> str:
    """The name without differences of case and Unicode form: where two are equal, some system takes them for one."""
    upper = unicodedata.normalize("NFC", name).upper()  # as exFAT compares, which takes \u0131 for i
    return unicodedata.normalize("NFC", upper.casefold())


def is_unicode(name: str) -> bool:
    """Whether a name is Unicode text; on Linux a file's name may be other bytes, which Python holds as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def printable(name: str) -> str:
    """The name with what is not Unicode in it as escapes."""
    return name.encode(errors="backslashreplace").decode()


def safe_part(text: str, longest: int = LONGEST_PART) -> str:
    """A name that `check_parts` takes, with what it refuses in this one replaced by `_`; may become empty.

    Args:
        longest: bytes; the rest is cut off.
    """
    text = unicodedata.normalize("NFC", text[: 8 * longest])
    replaced = "".join("_" if _is_invisible(character) or _reserved_in(character) else character for character in text)
    name = replaced.encode()[:longest].decode(errors="ignore")
    while name and _plain(name) != _plain(name).lstrip():
        name = name[1:]
    while name and _plain(name) != _plain(name).rstrip().rstrip("."):
        name = name[:-1]
    return safe_part(f"_{name}", longest) if _is_device(name) else name


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
        if _is_invisible(character):
            raise PathRefused(f"with the character {character!r}, which is not seen: rename it.")
    if len(part.encode()) > LONGEST_PART:
        raise PathRefused(f"with a part of more than {LONGEST_PART} bytes: give it a shorter name.")
    plain = _plain(part)
    if bad := _reserved_in(part):
        listed = " ".join(sorted(bad))
        raise PathRefused(rf'with {listed} in it, by itself or in disguise: use no / \ : * ? " < > | in a name.')
    if plain != plain.strip() or plain.endswith("."):
        raise PathRefused(f"with the part {part!r}, which begins or ends with a space or ends with a dot: rename it.")
    if _is_device(part):
        raise PathRefused(f"with the part {part!r}, which Windows takes for a device: rename it.")


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in INVISIBLE and character not in JOINERS


def _plain(part: str) -> str:
    """The name as some system may normalise it: full-width and other forms of characters become the usual ones."""
    return unicodedata.normalize("NFKC", part)


def _reserved_in(part: str) -> set[str]:
    return {*RESERVED, "/", *SLASHES} & {*part, *_plain(part)}


def _is_device(part: str) -> bool:
    return DEVICES.fullmatch(_plain(part)) is not None
