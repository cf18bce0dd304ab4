"""Keeps what is private out of a report: names of people and machines, and where folders lie."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PATH = r"(?:[A-Za-z]:[\\/]|\\\\|/)"
QUOTED = re.compile(rf"""(['"])({PATH}.+?)\1""")
UNQUOTED = re.compile(rf"""(?<![\w.<>/\\])({PATH}[^\s'"]*[^\s'".,:;)])""")
BELOW_QUOTED = re.compile(r"""(['"])(<\w+>)([\\/].+?)\1""")
BELOW = re.compile(r"""(<\w+>)([\\/][^\s'"]*[^\s'".,:;)])""")
SHORTEST_NAME = 2
"""characters of a person's name: a shorter one says nothing, and would be met everywhere"""


class Privacy:
    """Replaces private parts of a text.

    Args:
        folders: what to write in place of a folder, by the folder.
        names: of persons and machines.
    """

    def __init__(self, folders: Mapping[str, Path], names: Mapping[str, str]):
        spelled = {text: f"<{word}>" for word, folder in folders.items() for text in _spellings(folder)}
        self._folders = sorted(spelled.items(), key=lambda each: -len(each[0]))
        self._names = {name: f"<{word}>" for name, word in names.items() if len(name) >= SHORTEST_NAME}

    def without(self, text: str) -> str:
        """The text on one line, with folders known by what they are, other paths by their last part, and no names."""
        text = " ".join(text.split())
        for folder, word in self._folders:
            text = re.sub(re.escape(folder) + r"(?![\w-])", lambda _, word=word: word, text, flags=re.IGNORECASE)
        text = BELOW_QUOTED.sub(lambda found: f"{found[1]}{found[2]} {_last(found[3])}{found[1]}", text)
        text = BELOW.sub(lambda found: f"{found[1]} {_last(found[2])}", text)
        text = QUOTED.sub(lambda found: f"{found[1]}{_last(found[2])}{found[1]}", text)
        text = UNQUOTED.sub(lambda found: _last(found[1]), text)
        for name, word in self._names.items():
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", lambda _, word=word: word, text, flags=re.IGNORECASE)
        return text


def privacy(**folders: Path) -> Privacy:
    """Of this person on this machine.

    Args:
        folders: further folders, such as ComfyUI's, by what to call them.
    """
    known = {"python": Path(sys.prefix), "temporary": Path(tempfile.gettempdir()), **folders}
    names = {platform.node(): "machine"}
    homes = [Path(os.environ[name]) for name in ("HOME", "USERPROFILE") if os.environ.get(name)]
    with contextlib.suppress(RuntimeError):
        homes.append(Path.home())
    with contextlib.suppress(OSError, KeyError, ImportError):
        names[getpass.getuser()] = "user"
    names.update({os.environ[each]: "user" for each in ("USERNAME", "USER", "LOGNAME") if os.environ.get(each)})
    names.update({home.name: "user" for home in homes})
    return Privacy(
        {**known, **{f"home{number or ''}": home for number, home in enumerate(dict.fromkeys(homes))}}, names
    )


def _spellings(folder: Path) -> set[str]:
    """A folder's path as messages spell it; nothing of a root, which is in every path."""
    if folder == Path(folder.anchor):
        return set()
    paths = {str(folder), os.path.abspath(folder), os.path.realpath(folder)}
    return {spelled for path in paths for spelled in (path, path.replace("\\", "/"), path.replace("\\", "\\\\"))}


def _last(path: str) -> str:
    return ".../" + re.split(r"[\\/]+", path.rstrip("\\/"))[-1]
