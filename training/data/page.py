"""The dataset on the page: its pictures as the trainer will use them, thumbnails, and captions edited there."""

import io
import os
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .. import host
from ..basics.errors import InputError, Refusal, raise_if_any
from ..basics.folders import is_settled
from ..basics.paths import visible_parts
from .buckets import Fit
from .cache import open_cache
from .captions import METADATA, sidecar, write_sidecar
from .dataset import Dataset, DatasetSettings, Picture, is_enlarged
from .pictures import ENDINGS, PictureError, PictureFacts, picture_facts
from .pictures import thumbnail as picture_thumbnail
from .sources import Examine, FolderContents, current_captions, read_folder

SUBJECT = "Load Dataset"
PATIENCE = 3.0
"""seconds for which pictures are looked at before the page hears how far it went"""
LONGEST_CAPTION = 20_000
"""characters"""
SIDES = {"resolution": (64, 4096), "bucket_step": (8, 256), "shortest_side": (64, 4096), "longest_side": (64, 8192)}
"""settings that decide a picture's bucket, and from what to what they go, in pixels"""
THUMBNAIL_SIDES = (16, 1024)
MOST_REMEMBERED = 200_000

_remembered: dict[tuple[str, int, int], PictureFacts | str] = {}
"""(path, size, time of change) -> what a file is, or why it cannot be used"""
_saving = threading.Lock()


def look(query: dict[str, str]) -> dict[str, Any]:
    """A folder's pictures as the trainer will use them.

    Args:
        query: `folder`, and Load Dataset's `resolution`, `extra_resolutions`, `bucket_step`, `shortest_side`,
            `longest_side`, `masked_loss`; what is left out has the node's default.

    Returns:
        `folder`; `done`, `total`: files looked at so far and in all. While done is smaller that is all; ask again, the
        work goes on where it stopped. Then also `pictures`, in name order, each with `name`, `width`, `height`
        (pixels, upright), `bucket` [width, height], `crop` [left, top, width, height] (what is trained on, as shares
        of the picture), `caption`, `source` (the file it stands in, or ""), `repeats`, `regularisation`, `enlarged`
        (smaller than its bucket), `same_as` (the first picture with the same content, or None), `version` (changes
        with the content); `problems`: a sentence for each file left out; `locked`: why captions cannot be saved here,
        or "".

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
                "source": _source(picture),
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
        "locked": _locked(folder),
    }


def thumbnail(query: dict[str, str]) -> host.Content:
    """A picture of a dataset, small, as JPEG.

    Args:
        query: `folder`; `name`, the picture's path in it; `side`, the most pixels a side, 256 by default.

    Raises:
        InputError: the folder or side cannot be used.
        Refusal: no such picture in the folder (404), or it cannot be shown (422).
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


def save(request: dict[str, Any]) -> dict[str, Any]:
    """Writes captions into the pictures' sidecars: the one that is there, else .txt, which goes before metadata.jsonl.

    Args:
        request: `folder`; `captions`: a list of {`name`, `caption`, `before`: the caption that the page had read};
            `overwrite`: write even where the caption is another one by now.

    Returns:
        `saved`: the pictures' names; `failed`: {name: why it could not be written}.

    Raises:
        InputError: the folder or a caption cannot be used; then nothing is written.
        Refusal: captions changed on disk since they were read (409); `changed` has them as {name: caption, None = it
            cannot be read}, and nothing is written.
    """
    folder, entries = _folder(request.get("folder", "")), _entries(request.get("captions"))
    locked = _locked(folder)
    raise_if_any(SUBJECT, [locked] if locked else [])
    saved, failed = [], {}
    with _saving:
        current = current_captions(folder)
        missing = [f"{entry['name']!r} is no picture of this folder any more: look again." for entry in entries
                   if entry["name"] not in current]  # fmt: skip
        raise_if_any(SUBJECT, missing[:10])
        changed = {
            entry["name"]: current[entry["name"]]
            for entry in entries
            if current[entry["name"]] not in (entry["before"], entry["caption"].strip())
        }
        if changed and request.get("overwrite") is not True:
            raise Refusal(409, f"{len(changed)} captions changed on disk since they were read.", changed=changed)
        for entry in entries:
            name, path = entry["name"], folder / entry["name"]
            if host.leaves_roots(path.parent) or not host.may_write(path):
                failed[name] = f"{name}: it lies behind a link to a folder where nothing may be written."
                continue
            try:
                write_sidecar(path, entry["caption"].strip(), overwrite=True)
                saved.append(name)
            except OSError as error:
                failed[name] = f"{name}: its caption cannot be written: {error.strerror}."
    return {"saved": saved, "failed": failed}


class _Unfinished(Exception):
    """Time for an answer, and not all pictures were looked at."""

    def __init__(self, done: int, total: int):
        self.done = done
        self.total = total
        super().__init__()


class _Examiner:
    """Examines picture files, and remembers what it saw and what was wrong; counts the time that new ones take."""

    def __init__(self, examine: Examine):
        self.digests: dict[Path, str] = {}
        self._examine = examine
        self._until = float("inf")

    @property
    def is_out_of_time(self) -> bool:
        return time.monotonic() > self._until

    def __call__(self, path: Path) -> PictureFacts:
        stat = path.stat()
        key = (os.path.abspath(path), stat.st_size, stat.st_mtime_ns)
        found = _remembered.get(key)
        if found is None:
            self._until = min(self._until, time.monotonic() + PATIENCE)
            try:
                found = self._examine(path)
            except PictureError as error:
                found = str(error)
            if is_settled(stat.st_mtime_ns):
                if len(_remembered) >= MOST_REMEMBERED:
                    _remembered.clear()
                _remembered[key] = found
        if isinstance(found, str):
            raise PictureError(found)
        self.digests[path] = found.digest
        return found


def _read(folder: Path, settings: DatasetSettings) -> tuple[FolderContents, dict[str, str]]:
    """The folder's contents, and the digest of each picture by its name."""
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
    """The folder that a node may read too; never one behind a link that leads out of the allowed roots."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(SUBJECT, [f"folder is {name!r}; it must be the name of a folder."])
    folder = host.resolve_folder(name, "folder")
    if host.leaves_roots(folder):
        problem = (
            f"folder is {name!r}, a link that leads out of the folders that may be read: let the person who runs the "
            "server allow the place it leads to, in LORA_KILN_ROOTS. Training itself follows the link."
        )
        raise InputError(SUBJECT, [problem])
    return folder


def _picture(folder: Path, name: str) -> Path:
    """A picture's file in a folder; no other name of it than the one that `look` gives."""
    parts = visible_parts(name)
    path = folder.joinpath(*parts) if parts and name.lower().endswith(ENDINGS) else None
    if path is None or not path.is_file() or host.leaves_roots(path):
        raise Refusal(404, f"name is {name!r}, which is no picture in the folder.")
    return path


def _locked(folder: Path) -> str:
    if host.may_write(folder / "caption.txt"):
        return ""
    return (
        "Captions can be saved inside ComfyUI's input folder only: move the pictures there, or let the person who "
        f"runs the server set {host.WRITE_VARIABLE}=1."
    )


def _entries(captions: Any) -> list[dict[str, str]]:
    """The captions of a request, once each is known to be one."""
    if not isinstance(captions, list) or not captions:
        raise InputError(SUBJECT, ["captions must be a list with at least one entry."])
    problems = []
    for entry in captions:
        texts = [entry.get(key) for key in ("name", "caption", "before")] if isinstance(entry, dict) else [None]
        if not all(isinstance(text, str) and _is_text(text) for text in texts):
            problems.append("an entry of captions lacks name, caption or before, or has what is no text in them.")
        elif len(entry["caption"]) > LONGEST_CAPTION:
            problems.append(
                f"the caption of {entry['name']!r} has {len(entry['caption'])} characters; at most {LONGEST_CAPTION}."
            )
    raise_if_any(SUBJECT, problems[:10])
    return captions


def _is_text(text: str) -> bool:
    """Whether it can stand in a UTF-8 file and be read there again."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _crop(fit: Fit) -> list[float]:
    across, down = fit.scaled_width, fit.scaled_height
    return [round(share, 5) for share in (fit.left / across, fit.top / down, fit.width / across, fit.height / down)]


def _source(picture: Picture) -> str:
    assert picture.path is not None
    file = sidecar(picture.path)
    return file.name if file else METADATA if picture.caption else ""
