"""New datasets from the page: pictures and captions that a person drops on the Load Dataset node."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from .. import host
from ..basics.errors import InputError
from ..basics.paths import safe_part, visible_parts
from ..host import Upload, UploadRules
from .captions import SIDECARS, CaptionFileError, read_text
from .pictures import ENDINGS, PictureError, check_picture, picture_size

LARGEST_CAPTION_FILE = 1 << 20
"""bytes"""
DEEPEST = 4
"""levels of folders that a dropped folder may have"""
LONGEST_NAME = 150
"""bytes of a file's or folder's name, without its ending"""


def largest(name: str) -> int:
    """Bytes that an uploaded file of this name may have; 0 = files of this kind are refused."""
    ending = PurePosixPath(name).suffix.lower()
    return host.largest_upload() if ending in ENDINGS else LARGEST_CAPTION_FILE if ending in SIDECARS else 0


RULES = UploadRules(host.input_folder, largest, most_files=10_000, most_bytes=20 * 10**9)


def add(query: dict[str, str], uploads: Sequence[Upload]) -> dict[str, Any]:
    """Makes a new folder in the host's input folder, with the pictures and captions of an upload.

    Nothing is overwritten: where the name is taken, a number is appended. Folders in the upload stay folders.

    Args:
        query: `name`, of the new folder; characters that file systems refuse are replaced.
        uploads: files whose content lies in the input folder, from where it is moved.

    Returns:
        `folder`: its name; `pictures`, `captions`: how many; `refused`: a sentence for each file left out.

    Raises:
        InputError: no name, or no usable picture; no folder is made then.
    """
    name = _safe_name(query.get("name", ""))
    if not name or name.startswith("."):
        raise InputError(
            "The upload", [f"name is {query.get('name', '')!r}; give the new folder a name, such as cats."]
        )
    files: dict[PurePosixPath, Path] = {}
    taken: set[str] = set()
    stems: set[PurePosixPath] = set()
    refused = []
    # Captions after pictures: one without its picture is left out.
    for upload in sorted(uploads, key=lambda each: each.name.lower().endswith(SIDECARS)):
        path = safe_path(upload.name)
        problem = _problem(path, upload, taken, stems)
        if problem or path is None:
            refused.append(f"{upload.name}: {problem}")
            continue
        files[path] = upload.path
        taken.add(str(path).casefold())
        if path.suffix in ENDINGS:
            stems.add(path.with_suffix(""))
    pictures = sum(path.suffix in ENDINGS for path in files)
    if not pictures:
        raise InputError("The upload", ["it has no usable picture.", *refused[:10]])
    folder = _new_folder(name)
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(content, target)
    return {"folder": folder.name, "pictures": pictures, "captions": len(files) - pictures, "refused": refused}


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
    return None if any(not part or part.startswith(".") for part in safe) else PurePosixPath(*safe)


def _safe_name(text: str) -> str:
    return safe_part(text, LONGEST_NAME)


def _problem(path: PurePosixPath | None, upload: Upload, taken: set[str], stems: set[PurePosixPath]) -> str:
    """Why a file is refused; "" where it is taken.

    Args:
        path: the file's `safe_path`.
        taken: paths of the files taken so far, case-folded.
        stems: paths of the pictures taken so far, without their endings.
    """
    if not largest(upload.name):
        return f"only pictures ({' '.join(ENDINGS)}) and captions ({' '.join(SIDECARS)}) are taken."
    if path is None:
        return "its name is hidden, leads elsewhere or lies too deep: rename it."
    if not upload.is_whole:
        return f"it is larger than {largest(upload.name) / 2**20:.0f} MB."
    if str(path).casefold() in taken:
        return "another file of the upload has its name."
    if path.suffix in SIDECARS and path.with_suffix("") not in stems:
        return "no picture of its name is there."
    try:
        if path.suffix in SIDECARS:
            read_text(upload.path)
        else:
            picture_size(upload.path)
            check_picture(upload.path)
    except (CaptionFileError, PictureError, OSError) as error:
        return str(error).removeprefix(f"{upload.path.name} ")
    return ""


def _new_folder(name: str) -> Path:
    """Makes a folder of this name in the input folder, with a number appended where the name is taken."""
    number = 1
    while True:
        folder = host.input_folder() / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
