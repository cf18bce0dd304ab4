"""Which caption file belongs to which picture, and writing captions."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..basics.files import atomic_write
from ..basics.paths import folded
from .captions import SIDECARS
from .pictures import ENDINGS

JSON = ".json"
"""ending of a file that some programs write beside a picture; it may hold the caption"""


class CaptionFiles:
    """The pictures of some folders and the caption files beside them.

    A picture's caption is in the file of its full name, `a.png.txt`, else of its name without ending, `a.txt`; `.txt`
    comes before `.caption`. Case and Unicode form of a name matter only where several pictures differ in nothing else.

    Args:
        files: pictures, caption files and others, which are ignored.
    """

    def __init__(self, files: Iterable[Path]):
        self._files: dict[tuple[Path, str], list[Path]] = {}
        """(folder, folded name) -> caption files"""
        self._names: set[tuple[Path, str]] = set()
        """(folder, name with or without ending) of all pictures"""
        self._stems: Counter[tuple[Path, str]] = Counter()
        """(folder, folded name without ending) -> number of pictures"""
        for path in files:
            ending = path.suffix.lower()
            if ending in (*SIDECARS, JSON):
                self._files.setdefault((path.parent, folded(path.name)), []).append(path)
            elif ending in ENDINGS:
                self._names |= {(path.parent, path.name), (path.parent, path.stem)}
                self._stems[path.parent, folded(path.stem)] += 1

    def of(self, picture: Path, endings: Iterable[str] = SIDECARS) -> list[Path]:
        """A picture's caption files; its caption is in the first one."""
        found: list[Path] = []
        for name in (picture.name, picture.stem):
            for ending in endings:
                near = self._files.get((picture.parent, folded(name + ending)), [])
                own = [path for path in near if path.stem == name or (path.parent, path.stem) not in self._names]
                found += sorted(own, key=lambda path: (path.stem != name, path.suffix != ending))
        return found

    def overlooked(self, picture: Path) -> list[Path]:
        """A picture's further caption files, which are not read; without those that may be another picture's."""
        return [file for file in self.of(picture)[1:] if self._is_own(file, picture)]

    def place_for(self, picture: Path) -> Path:
        """The file to write a picture's caption into; it is no other picture's caption."""
        for existing in self.of(picture)[:1]:
            if self._is_own(existing, picture):
                return existing
        if self._stems[picture.parent, folded(picture.stem)] < 2:
            return picture.with_suffix(SIDECARS[0])
        return picture.with_name(picture.name + SIDECARS[0])

    def _is_own(self, file: Path, picture: Path) -> bool:
        """Whether a caption file can be no other picture's."""
        has_namesakes = self._stems[picture.parent, folded(picture.stem)] > 1
        return not has_namesakes or folded(file.stem) == folded(picture.name)


def write_sidecar(picture: Path, caption: str, overwrite: bool, files: CaptionFiles | None = None) -> bool:
    """Writes a picture's caption atomically: into its existing caption file, else into a new .txt file.

    Args:
        overwrite: replace a caption that is there; otherwise only a blank file is replaced.
        files: the caption files of the picture's folder; None = they are listed now.

    Returns:
        Whether the caption was written.

    Raises:
        OSError: the disk is full, the folder read-only ...
    """
    files = files or CaptionFiles(picture.parent.iterdir())
    if not overwrite and any(path.is_file() and path.read_bytes().strip() for path in files.of(picture)):
        return False
    with atomic_write(files.place_for(picture)) as unfinished:
        with unfinished.open("x", encoding="utf-8", newline="\n") as file:
            file.write(caption + "\n")
    return True
