"""The dataset on the page: its pictures as they will be trained on, thumbnails, and edited captions."""

import io
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from .. import host
from ..basics.disk_errors import remedy
from ..basics.errors import InputError, Refusal, problems_of, raise_if_any
from ..basics.files import one_patience, sweep_unfinished
from ..basics.folders import file_state, files_below, is_stable
from ..basics.paths import visible_parts
from .buckets import Fit
from .cache import open_cache
from .caption_files import CaptionFiles, write_sidecar
from .dataset import Dataset, is_enlarged
from .dataset_settings import DatasetSettings
from .picture_folder import Examine, FolderContents, current_captions, read_folder
from .pictures import ENDINGS, PictureError, PictureFacts, picture_facts
from .pictures import thumbnail as picture_thumbnail

SUBJECT = "Load Dataset"
ANSWER_SECONDS = 3.0
"""time spent on new pictures before the page gets an intermediate answer"""
LONGEST_CAPTION = 20_000
"""characters"""
MOST_PROBLEMS = 10
"""problems that one answer lists"""
SIDES = {"resolution": (64, 4096), "bucket_step": (8, 256), "shortest_side": (64, 4096), "longest_side": (64, 8192)}
"""settings that decide a picture's bucket -> lowest and highest value, pixels"""
THUMBNAIL_SIDES = (16, 1024)
MOST_REMEMBERED = 200_000

_remembered: dict[tuple[str, tuple[int, ...]], PictureFacts | str] = {}
"""(path, `file_state`) of a file -> its facts, or why it cannot be used"""
_saving = threading.Lock()

Text = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""without null characters; pydantic refuses halves of surrogate pairs itself"""


class CaptionEdit(BaseModel, strict=True):
    """A caption that was edited on the page."""

    name: Text
    """of the picture"""
    caption: Text
    before: Text
    """the caption that the page had read"""


class SaveRequest(BaseModel, strict=True):
    """Edited captions."""

    captions: Annotated[list[CaptionEdit], Field(min_length=1)]
    overwrite: bool = False
    """save even if the captions on disk are no longer those that the page had read"""


def describe(query: dict[str, str]) -> dict[str, Any]:
    """A folder's pictures as they will be trained on.

    Args:
        query: `folder`, and Load Dataset's `resolution`, `extra_resolutions`, `bucket_step`, `shortest_side`,
            `longest_side`, `masked_loss`; the node's default for those left out.

    Returns:
        `folder`; `done`, `total`: number of files examined so far, and in all. If `done` is smaller, the answer ends
        here: the next request continues the work. Else also `pictures`, in name order, each with `name`, `width`,
        `height` (pixels, upright), `bucket` [width, height], `crop` [left, top, width, height] (the trained area, as
        fractions of the picture), `caption`, `source` (name of the caption's file, or ""), `repeats`, `regularisation`,
        `enlarged` (smaller than its bucket), `same_as` (the first picture with the same content, or None), `version`
        (changes with the content); `problems`: a sentence for each unusable file; `notes`: sentences about files beside
        the pictures; `locked`: why captions cannot be saved here, or "".

    Raises:
        InputError: folder or settings cannot be used.
    """
    settings, folder = _settings(query), _folder(query.get("folder", ""))
    try:
        contents, digests = _read(folder, settings)
    except _Unfinished as unfinished:
        return {"folder": query["folder"], "done": unfinished.done, "total": unfinished.total}
    dataset = Dataset(contents.pictures, settings)
    fits, largest = dataset.fits(), dataset.fits(max(settings.resolutions()))
    first: dict[str, str] = {}
    pictures = []
    for picture, fit, largest_fit in zip(dataset.pictures, fits, largest, strict=True):
        digest = digests[picture.name]
        same_as = first.setdefault(digest, picture.name)
        pictures.append(
            {
                "name": picture.name,
                "width": picture.width,
                "height": picture.height,
                "bucket": [fit.width, fit.height],
                "crop": _crop(fit),
                "caption": picture.caption,
                "source": picture.caption_file.name if picture.caption_file else "",
                "repeats": picture.repeats,
                "regularisation": picture.is_regularisation,
                "enlarged": is_enlarged(picture, largest_fit),
                "same_as": None if same_as == picture.name else same_as,
                "version": digest[:16],
            }
        )
    total = len(pictures) + len(contents.problems)
    return {
        "folder": query["folder"],
        "done": total,
        "total": total,
        "pictures": pictures,
        "problems": list(contents.problems),
        "notes": list(contents.notes),
        "locked": _why_locked(folder),
    }


def thumbnail(query: dict[str, str]) -> host.Content:
    """A small JPEG of a picture in a folder.

    Args:
        query: `folder`; `name`, the picture's path in it; `side`, the longest side in pixels, 256 by default.

    Raises:
        InputError: the folder or side cannot be used.
        Refusal: no such picture in the folder (404), or it cannot be decoded (422).
    """
    folder = _folder(query.get("folder", ""))
    side = _whole(query.get("side", "256"), "side", THUMBNAIL_SIDES)
    path = _picture(folder, query.get("name", ""))
    try:
        image = picture_thumbnail(path, side)
    except (PictureError, OSError) as error:
        raise Refusal(422, str(error)) from error
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return host.Content(data.getvalue(), "image/jpeg")


def save_captions(request: dict[str, Any]) -> dict[str, Any]:
    """Writes captions into the pictures' caption files: the existing one, else a .txt, which precedes metadata.jsonl.

    Of pictures whose names differ in the ending alone, each gets a file of its own.

    Args:
        request: `folder`, and the fields of `SaveRequest`.

    Returns:
        `saved`: the pictures' names; `failed`: {name: why it could not be written}.

    Raises:
        InputError: the request cannot be used; nothing is written.
        Refusal: captions changed on disk since the page read them (409); `changed` has them as {name: caption, None =
            it cannot be read}, and nothing is written.
    """
    folder, checked = _folder(request.get("folder", "")), _checked(request)
    edits = checked.captions
    locked = _why_locked(folder)
    raise_if_any(SUBJECT, [locked] if locked else [])
    saved, failed = [], {}
    with _saving, one_patience():
        current = current_captions(folder)
        missing = [
            f"{edit.name!r:.200} is no picture of this folder any more: look again."
            for edit in edits
            if edit.name not in current
        ]
        raise_if_any(SUBJECT, missing[:MOST_PROBLEMS])
        changed = {
            edit.name: current[edit.name]
            for edit in edits
            if current[edit.name] not in (edit.before, edit.caption.strip())
        }
        if changed and not checked.overwrite:
            raise Refusal(409, f"{len(changed)} captions changed on disk since they were read.", changed=changed)
        for each in {(folder / edit.name).parent for edit in edits}:
            sweep_unfinished(each)
        files = CaptionFiles(files_below(folder))
        for edit in edits:
            path = folder / edit.name
            if host.leaves_roots(path.parent) or not host.may_write(path):
                failed[edit.name] = f"{edit.name}: it lies behind a link to a folder where nothing may be written."
                continue
            try:
                write_sidecar(path, edit.caption.strip(), True, files)
                saved.append(edit.name)
            except OSError as error:
                to_do = remedy(error, path.parent)
                failed[edit.name] = f"{edit.name}: its caption cannot be written ({error.strerror}): {to_do}."
    return {"saved": saved, "failed": failed}


class _Unfinished(Exception):
    """Time is up, and some pictures are not examined yet."""

    def __init__(self, done: int, total: int):
        self.done = done
        self.total = total
        super().__init__()


class _Examiner:
    """Examines picture files, remembers the results in this process, and limits the time spent on new files."""

    def __init__(self, examine: Examine):
        self.digests: dict[Path, str] = {}
        self._examine = examine
        self._deadline = float("inf")

    @property
    def is_out_of_time(self) -> bool:
        return time.monotonic() > self._deadline

    def __call__(self, path: Path) -> PictureFacts:
        stat = path.stat()
        key = (os.path.abspath(path), file_state(stat))
        found = _remembered.get(key)
        if found is None:
            self._deadline = min(self._deadline, time.monotonic() + ANSWER_SECONDS)
            try:
                found = self._examine(path)
            except PictureError as error:
                found = str(error)
            if is_stable(stat.st_mtime_ns):
                if len(_remembered) >= MOST_REMEMBERED:
                    _remembered.clear()
                _remembered[key] = found
        if isinstance(found, str):
            raise PictureError(found)
        self.digests[path] = found.digest
        return found


def _read(folder: Path, settings: DatasetSettings) -> tuple[FolderContents, dict[str, str]]:
    """The folder's contents, and picture name -> its digest."""
    with open_cache() or nullcontext() as cache:
        examiner = _Examiner(cache.picture_facts if cache else picture_facts)

        def on_picture(done: int, total: int) -> None:
            if examiner.is_out_of_time:
                raise _Unfinished(done, total)

        contents = read_folder(folder, settings, examine=examiner, on_picture=on_picture)
    return contents, {picture.name: examiner.digests[folder / picture.name] for picture in contents.pictures}


def _settings(query: dict[str, str]) -> DatasetSettings:
    sides: dict[str, Any] = {name: _whole(query[name], name, limits) for name, limits in SIDES.items() if name in query}
    extra = query.get("extra_resolutions", "")
    if len(extra) > 100:
        raise InputError(SUBJECT, ["extra_resolutions is longer than 100 characters: name fewer."])
    return DatasetSettings(**sides, extra_resolutions=extra, masked_loss=query.get("masked_loss") == "true")


def _whole(text: str, field: str, limits: tuple[int, int]) -> int:
    low, high = limits
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high):
        raise InputError(SUBJECT, [f"{field} is {text[:40]!r}; it must be a whole number from {low} to {high}."])
    return int(text)


def _folder(name: Any) -> Path:
    """A folder that the node may read too, but none behind a link that leads out of the allowed roots."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(SUBJECT, [f"folder is {name!r:.200}; it must be the name of a folder."])
    folder = host.resolve_folder(name, "folder")
    if host.leaves_roots(folder):
        problem = (
            f"folder is {name!r}, a link that leads out of the folders that may be read: let the person who runs the "
            "server allow the place it leads to, in LORA_KILN_ROOTS. Training itself follows the link."
        )
        raise InputError(SUBJECT, [problem])
    return folder


def _picture(folder: Path, name: str) -> Path:
    """A picture's file, by its name in `describe`."""
    parts = visible_parts(name)
    path = folder.joinpath(*parts) if parts and name.lower().endswith(ENDINGS) else None
    if path is None or not os.path.isfile(path) or host.leaves_roots(path):
        raise Refusal(404, f"name is {name!r:.200}, which is no picture in the folder.")
    return path


def _why_locked(folder: Path) -> str:
    if host.may_write(folder / "caption.txt"):
        return ""
    return (
        "Captions can be saved inside ComfyUI's input folder only: move the pictures there, or let the person who "
        f"runs the server set {host.WRITE_VARIABLE}=1."
    )


def _checked(request: dict[str, Any]) -> SaveRequest:
    try:
        checked = SaveRequest.model_validate(request)
    except ValidationError as error:
        raise InputError(SUBJECT, problems_of(error)[:MOST_PROBLEMS]) from None
    too_long = [
        f"the caption of {edit.name!r} has {len(edit.caption)} characters; at most {LONGEST_CAPTION}."
        for edit in checked.captions
        if len(edit.caption) > LONGEST_CAPTION
    ]
    raise_if_any(SUBJECT, too_long[:MOST_PROBLEMS])
    return checked


def _crop(fit: Fit) -> list[float]:
    across, down = fit.scaled_width, fit.scaled_height
    return [round(share, 5) for share in (fit.left / across, fit.top / down, fit.width / across, fit.height / down)]
