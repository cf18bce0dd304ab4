"""New datasets from the page: pictures and captions that a person drops on the Load Dataset node."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

from .. import host
from ..basics.disk_errors import remedy
from ..basics.errors import InputError, Refusal
from ..basics.files import delete_folder, replace
from ..basics.folders import is_a_persons
from ..basics.long_paths import TooLong, try_length
from ..basics.paths import folded, safe_part, visible_parts
from ..host import Upload, UploadRules
from .captions import SIDECARS, CaptionFileError, read_text
from .pictures import ENDINGS, PictureError, check_picture, picture_size

LARGEST_CAPTION_FILE = 1 << 20
"""bytes"""
DEEPEST = 4
"""levels of folders that a dropped folder may have"""
MOST_NUMBERED = 99
"""as many folders of one name are thought of where the length of paths is tried"""
LONGEST_NAME = 150
"""bytes of a file's or folder's name, without its ending"""

AnyPath = TypeVar("AnyPath", bound=PurePath)


def largest(name: str) -> int:
    """Bytes that an uploaded file of this name may have; 0 = files of this kind are refused."""
    ending = PurePosixPath(name).suffix.lower()
    return host.largest_upload() if ending in ENDINGS else LARGEST_CAPTION_FILE if ending in SIDECARS else 0


RULES = UploadRules(host.input_folder, largest, most_files=10_000, most_bytes=20 * 10**9)


def add(query: dict[str, str], uploads: Sequence[Upload]) -> dict[str, Any]:
    """Makes a new folder in the host's input folder, with the pictures and captions of an upload.

    Nothing is overwritten: where a name is taken, a number is appended. Folders in the upload stay folders. A caption
    goes beside the picture of its name, whatever that picture is called in the new folder.

    Args:
        query: `name`, of the new folder; characters that file systems refuse are replaced.
        uploads: files whose content lies in the input folder, from where it is moved.

    Returns:
        `folder`: its name; `pictures`, `captions`: how many; `refused`: a sentence for each file left out.

    Raises:
        InputError: no name, or no usable picture; no folder is made then.
        Refusal: the folder cannot be written.
    """
    name = _safe_name(query.get("name", ""))
    if not name or not is_a_persons(name):
        raise InputError(
            "The upload", [f"name is {query.get('name', '')!r:.200}; give the new folder a name, such as cats."]
        )
    places, refused = _Places(_numbered(host.input_folder() / name, MOST_NUMBERED)), []
    for upload in sorted(uploads, key=lambda each: _is_caption(each.name)):  # captions after pictures
        problem = _problem(upload) or places.add(upload)
        if problem:
            places.refuse(upload.name)
            refused.append(f"{upload.name:.200}: {problem}")
    if not any(path.suffix in ENDINGS for path in places.files):
        raise InputError("The upload", ["it has no usable picture.", *refused[:10]])
    folder, left_out = _filled_folder(name, places.files)
    refused += [f"{path}: the disk takes its name for that of another file of the upload." for path in sorted(left_out)]
    moved = places.files.keys() - left_out
    pictures = sum(path.suffix in ENDINGS for path in moved)
    answer = {"pictures": pictures, "captions": len(moved) - pictures, "refused": refused}
    return {"folder": folder.name, **answer}


class _Places:
    """Where the files of an upload go: each picture under a name of its own, each caption under its picture's.

    Args:
        folder: the new folder, maybe not there yet; paths in it that are too long are refused. None: none is.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self.files: dict[PurePosixPath, Path] = {}
        """path in the new folder -> file with the content"""
        self._sent: set[str] = set()
        """folded names of the pictures, as sent"""
        self._taken: set[str] = set()
        """folded paths of the files in the new folder"""
        self._folders: set[str] = set()
        """folded paths of its folders"""
        self._stems: dict[str, PurePosixPath] = {}
        """name of a picture as sent, without ending -> its path in the new folder, without ending"""
        self._taken_stems: set[str] = set()
        """those paths, folded"""
        self._numbers: dict[str, int] = {}
        """such a path, folded -> the last number that was appended to it; 1 = none"""
        self._bases: dict[str, PurePosixPath | None] = {}
        """name of a picture as sent, with and without ending -> path of its caption, without ending; None = refused"""
        self._near: dict[str, set[str]] = {}
        """those names, folded -> as sent"""

    def add(self, upload: Upload) -> str:
        """Gives a file its place. Returns why there is none, or ""."""
        is_caption = _is_caption(upload.name)
        place = self._of_caption(upload.name) if is_caption else self._of_picture(upload.name)
        if isinstance(place, str):
            return place
        path, above = folded(str(place)), {folded(str(folder)) for folder in place.parents}
        if path in self._taken:
            return "another file of the upload has its name."
        if path in self._folders or self._taken & above:
            return "a file and a folder of the upload have one name."
        try:
            if self._folder is not None:
                try_length(self._folder / place)
        except TooLong as error:
            return str(error)
        self.files[place] = upload.path
        self._taken.add(path)
        self._folders |= above
        if not is_caption:
            stem, place_stem = _stem(upload.name), place.with_suffix("")
            self._sent.add(folded(upload.name))
            self._stems[stem] = place_stem
            self._taken_stems.add(folded(str(place_stem)))
            self._bases.update({upload.name: place, stem: place_stem})
            self._note_near(upload.name)
        return ""

    def refuse(self, name: str) -> None:
        """Notes that a picture was refused, so that its caption goes to no other one."""
        if not _is_caption(name):
            for each in (name, _stem(name)):
                self._bases.setdefault(each, None)
            self._note_near(name)

    def _note_near(self, name: str) -> None:
        for each in (name, _stem(name)):
            self._near.setdefault(folded(each), set()).add(each)

    def _of_picture(self, name: str) -> PurePosixPath | str:
        path = safe_path(name)
        if path is None:
            return "its name is hidden, leads elsewhere or lies too deep: rename it."
        if folded(name) in self._sent:
            return "another file of the upload has its name."
        stem = self._stems.get(_stem(name)) or self._free(path.with_suffix(""))
        return stem.with_name(stem.name + path.suffix)

    def _of_caption(self, name: str) -> PurePosixPath | str:
        stem = _stem(name)
        same = [stem] if stem in self._bases else [*self._near.get(folded(stem), ())]
        base = self._bases[same[0]] if len(same) == 1 else None
        if base is None:
            return "no picture of its name is there."
        return base.with_name(base.name + PurePosixPath(name).suffix.lower())

    def _free(self, path: PurePosixPath) -> PurePosixPath:
        """The path of a picture without its ending, with a number appended where it is taken."""
        base = folded(str(path))
        number = self._numbers.get(base, 0) + 1
        while folded(str(free := _numbered(path, number))) in self._taken_stems:
            number += 1
        self._numbers[base] = number
        return free


def _numbered(path: AnyPath, number: int) -> AnyPath:
    return path if number == 1 else path.with_name(f"{path.name}-{number}")


def safe_path(name: str) -> PurePosixPath | None:
    """The path in a new folder for an uploaded file: its own path, with characters that file systems refuse replaced.

    None where the path is absolute, leads out of the folder, is hidden or too deep, or has backslashes or null bytes.
    """
    parts = visible_parts(name)
    if parts is None or "\\" in name or len(parts) > DEEPEST + 1:
        return None
    ending = PurePosixPath(parts[-1]).suffix
    safe = [_safe_name(part) for part in (*parts[:-1], parts[-1].removesuffix(ending))]
    safe[-1] += ending.lower()
    return PurePosixPath(*safe) if all(part and is_a_persons(part) for part in safe) else None


def _safe_name(text: str) -> str:
    return safe_part(text, LONGEST_NAME)


def _is_caption(name: str) -> bool:
    return name.lower().endswith(SIDECARS)


def _stem(name: str) -> str:
    """A path without its file's ending."""
    return name.removesuffix(PurePosixPath(name).suffix)


def _problem(upload: Upload) -> str:
    """Why a file is refused, whatever its name; "" where it is taken."""
    if not largest(upload.name):
        return f"only pictures ({' '.join(ENDINGS)}) and captions ({' '.join(SIDECARS)}) are taken."
    if not upload.is_whole:
        return f"it is larger than {largest(upload.name) / 2**20:.0f} MB."
    try:
        if _is_caption(upload.name):
            read_text(upload.path)
        else:
            picture_size(upload.path)
            check_picture(upload.path)
    except (CaptionFileError, PictureError, OSError) as error:
        return str(error).removeprefix(f"{upload.path.name} ")
    return ""


def _filled_folder(name: str, files: Mapping[PurePosixPath, Path]) -> tuple[Path, set[PurePosixPath]]:
    """Makes a folder of this name in the input folder and moves the files into it. Nothing is overwritten.

    Args:
        files: path in the folder -> file.

    Returns:
        The folder, and the paths that the disk takes for those of other files.

    Raises:
        Refusal: it cannot be written; what is left of it is named.
    """
    folder, left_out = None, set()
    try:
        folder = _new_folder(name)
        for path, content in files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.lexists(target):
                left_out.add(path)
            else:
                replace(content, target)
    except OSError as error:
        left = ""
        if folder is not None:
            delete_folder(folder)
            left = f" A part of it is left, which could not be deleted: delete {folder}." if folder.exists() else ""
        to_do = remedy(error, host.input_folder())
        raise Refusal(507, f"The new folder cannot be written ({error.strerror}): {to_do}.{left}") from error
    return folder, left_out


def _new_folder(name: str) -> Path:
    """Makes a folder of this name in the input folder, with a number appended where the name is taken.

    Names that differ in case or Unicode form only are one: Windows and macOS take them for one.
    """
    taken = {folded(each.name) for each in host.input_folder().iterdir()}
    number = 1
    while True:
        folder = _numbered(host.input_folder() / name, number)
        number += 1
        if folded(folder.name) in taken:
            continue
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
