"""Where pictures come from: folders and the graph."""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..basics.errors import InputError, raise_if_any
from ..basics.folders import files_below
from ..basics.paths import leads_out
from .captions import METADATA, SIDECARS, CaptionFileError, read_metadata, read_text, sidecar
from .dataset import DatasetSettings, Picture
from .folder_settings import SETTINGS_FILE, FolderSettings, read_folder_settings
from .pictures import ENDINGS, SMALLEST_SIDE, PictureError, PictureFacts, picture_facts, same_aspect

MASK_MARKS = ("_mask", "-masklabel")
"""how the name of a mask file ends, before its ending (-masklabel is OneTrainer's)"""
LEADS_OUT = (
    "is a link that leads out of the folders that may be read: put what it leads to in its place, or let the person "
    "who runs the server allow that folder."
)
Examine = Callable[[Path], PictureFacts]
"""`picture_facts`, or a cache's memory of it"""


MOST_REPEATS = 10_000
"""of one picture in an epoch; a data set's plan is held in memory"""


@dataclass(frozen=True)
class FolderContents:
    """What was found in a folder and the folders in it."""

    pictures: tuple[Picture, ...]
    """the usable ones, in name order"""
    problems: tuple[str, ...]
    """a sentence for each that is not"""
    settings_files: tuple[str, ...]
    """the folders' own settings files that were read"""


def read_folder(
    folder: Path,
    settings: DatasetSettings,
    is_regularisation: bool = False,
    repeats: int = 1,
    examine: Examine = picture_facts,
    on_picture: Callable[[int, int], None] = lambda done, total: None,
    within: Sequence[Path] = (),
) -> FolderContents:
    """The pictures of a folder and of the folders in it, with their captions, masks and folders' own settings.

    A folder called `10_name` repeats its pictures 10 times (kohya's rule). A caption is looked for in `.txt`, in
    `.caption`, then in the folder's metadata.jsonl; without one it is empty. A picture with masked_loss on has its mask
    in `<name>_mask.png` or `<name>-masklabel.png` (or another picture ending) beside it, else in its transparency.
    Mask files are never training pictures. A dataset.toml holds for its folder and those below; the nearest counts.

    Args:
        settings: the dataset's, for what folders do not say themselves.
        repeats: multiplied with the folder's own.
        on_picture: called with (done, of how many); may raise to interrupt.
        within: the folders that links may lead into; the folder alone where there are none.

    Raises:
        InputError: a dataset.toml that cannot be read as it was meant, with all that is wrong in all of them.
    """
    files = _Files(folder, within)
    own_settings = _OwnSettings(folder, {path.parent for path in files.pictures}, files.is_stray)
    raise_if_any("Load Dataset", own_settings.problems)
    pictures, problems = [], []
    for done, path in enumerate(files.pictures):
        on_picture(done, len(files.pictures))
        own = own_settings.of(path.parent)
        mask = files.masks.get(path.with_suffix(""))
        try:
            facts = examine(path)
            if mask is not None and settings.of_folder(own).masked_loss:
                _check_mask(path, facts, mask, examine(mask))
            caption = files.caption(path)
        except (PictureError, CaptionFileError) as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(
                f"{path.name} cannot be opened: {error.strerror}. Set its rights, or take it out of the folder."
            )
            continue
        own_repeats = folder_repeats(path.parent, folder) if own.repeats is None else own.repeats
        pictures.append(
            Picture(
                path.relative_to(folder).as_posix(), facts.width, facts.height, caption, repeats * own_repeats,
                is_regularisation if own.regularisation is None else own.regularisation, path, mask_path=mask,
                is_transparent=facts.is_transparent, folder=own,
            )
        )  # fmt: skip
    return FolderContents(tuple(pictures), (*files.problems, *problems), own_settings.names)


def current_captions(folder: Path) -> dict[str, str | None]:
    """The captions of a folder's pictures as their files say now, by the pictures' names; None = it cannot be read.

    Pictures are not opened: unusable ones are among them.
    """
    files, captions = _Files(folder), {}
    for path in files.pictures:
        try:
            caption = files.caption(path)
        except (CaptionFileError, OSError):
            caption = None
        captions[path.relative_to(folder).as_posix()] = caption
    return captions


def folder_repeats(folder: Path, root: Path) -> int:
    """The repeats that a folder's name asks for: 10 for `10_name`; the nearest such folder up to root counts."""
    for place in _up_to(folder, root):
        match = re.match(r"(\d{1,4})_", place.name)  # longer numbers are dates
        if match:
            return max(1, int(match.group(1)))
    return 1


def folder_fingerprint(folder: Path, within: Sequence[Path] = ()) -> str:
    """Changes when a picture, mask, caption or settings file in the folder is added, removed or changed."""
    digest = hashlib.sha256()
    wanted = (*ENDINGS, *SIDECARS)
    for path in files_below(folder, None, within):
        if path.suffix.lower() in wanted or path.name in (METADATA, SETTINGS_FILE):
            stat = path.stat() if path.exists() else path.lstat()  # a link may lead to nothing
            digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def pictures_from_images(
    batches: Sequence[torch.Tensor], captions: Sequence[str], repeats: int = 1, masks: Sequence[torch.Tensor] = ()
) -> list[Picture]:
    """Pictures from the graph's IMAGEs.

    Args:
        batches: (B, H, W, C) each, in [0, 1]; C of 4 is put over white, and what is opaque is the picture's mask.
        captions: one a picture, one for all, or none.
        masks: (B, H, W) or (H, W) each, in [0, 1], white = learn; one a picture, one for all, or none.

    Raises:
        InputError: another number of captions or masks; a picture that is too small; a mask that is black all over or
            of another aspect ratio than its picture.
    """
    images = [image.detach().float().cpu() for batch in batches for image in batch]
    given = [mask.detach().float().cpu() for batch in masks for mask in (batch if batch.dim() == 3 else batch[None])]
    problems = []
    if len(captions) not in (0, 1, len(images)):
        problems.append(
            f"captions has {len(captions)} lines for {len(images)} pictures: give one a picture, one for all, or none."
        )
    if len(given) not in (0, 1, len(images)):
        problems.append(f"masks has {len(given)} for {len(images)} pictures: give one a picture, one for all, or none.")
        given = []
    small = [image.shape for image in images if min(image.shape[:2]) < SMALLEST_SIDE]
    if small:
        problems.append(
            f"images holds a picture of {small[0][1]} x {small[0][0]} pixels: "
            f"sides must be at least {SMALLEST_SIDE}. Leave it out, or put a larger one in its place."
        )
    given = _one_each(given, len(images))
    for number, (image, mask) in enumerate(zip(images, given, strict=False), 1):
        problems += _problems_of_mask(number, (image.shape[1], image.shape[0]), mask)
    raise_if_any("Load Dataset", problems)
    texts = _one_each(captions, len(images)) or [""] * len(images)
    of_images = given or [_opaque(image) for image in images]
    return [
        Picture(
            f"image {number}", image.shape[1], image.shape[0], text.strip(), repeats, pixels=_over_white(image),
            mask_pixels=None if mask is None else mask.clone(),
        )
        for number, (image, text, mask) in enumerate(zip(images, texts, of_images, strict=True), 1)
    ]  # fmt: skip


class _Files:
    """The files of a folder and of the folders in it."""

    def __init__(self, root: Path, within: Sequence[Path] = ()):
        self.root, self.within = root, within or (root,)
        strays: list[Path] = []
        images = [path for path in files_below(root, None, within, strays) if path.suffix.lower() in ENDINGS]
        stems = {path.with_suffix("") for path in images}
        self.masks: dict[Path, Path] = {}  # by their picture, without its ending
        found = set()
        for mark in MASK_MARKS:
            for path in images:
                picture = path.with_name(path.stem.removesuffix(mark)) if path.stem != mark else path
                if path.stem.endswith(mark) and picture in stems:
                    self.masks.setdefault(picture, path)
                    found.add(path)
        self.pictures = [path for path in images if path not in found]
        self.problems = [
            f"{path.name} {LEADS_OUT}" for path in strays if path.suffix.lower() in ENDINGS or path.is_dir()
        ]
        self._metadata: dict[Path, dict[str, str]] = {}

    def is_stray(self, file: Path) -> bool:
        """Whether it is a link that leads out of the folders that may be read."""
        return file.is_symlink() and leads_out(file, self.within)

    def caption(self, picture: Path) -> str:
        """From the sidecar, else from the nearest metadata.jsonl that names the picture, by its path from there."""
        metadata = [(place, self._metadata_of(place)) for place in _up_to(picture.parent, self.root)]
        file = sidecar(picture)
        if file is not None and self.is_stray(file):
            raise CaptionFileError(f"{file.name} {LEADS_OUT}")
        if file is not None:
            return read_text(file)
        captions = (captions.get(picture.relative_to(place).as_posix()) for place, captions in metadata)
        return next((caption for caption in captions if caption is not None), "")

    def _metadata_of(self, place: Path) -> dict[str, str]:
        if place not in self._metadata:
            file = place / METADATA
            stray = [f"{METADATA} {LEADS_OUT}"] if self.is_stray(file) else []
            self._metadata[place], problems = ({}, stray) if stray else read_metadata(place)
            self.problems += problems
        return self._metadata[place]


class _OwnSettings:
    """The settings files at and above some folders, up to root."""

    def __init__(self, root: Path, folders: Iterable[Path], is_stray: Callable[[Path], bool]):
        self.root = root
        self.problems: list[str] = []
        self._files: dict[Path, FolderSettings] = {}
        for place in sorted({place for folder in folders for place in _up_to(folder, root)}):
            name = (place / SETTINGS_FILE).relative_to(root.parent).as_posix()
            if is_stray(place / SETTINGS_FILE):
                self.problems.append(f"{name} {LEADS_OUT}")
                continue
            self._files[place], problems = read_folder_settings(place, name)
            self.problems += problems + [f"{name}: {problem}" for problem in _out_of_range(self._files[place])]
        self._merged = {} if self.problems else {folder: self._merge(folder) for folder in folders}

    @property
    def names(self) -> tuple[str, ...]:
        """The files that were read, by their paths from the root's parent."""
        there = (place / SETTINGS_FILE for place in self._files)
        return tuple(sorted(path.relative_to(self.root.parent).as_posix() for path in there if path.is_file()))

    def of(self, folder: Path) -> FolderSettings:
        """What holds in a folder."""
        return self._merged[folder]

    def _merge(self, folder: Path) -> FolderSettings:
        merged = FolderSettings()
        for place in _up_to(folder, self.root):
            merged = merged.over(self._files[place])
        return merged


def _up_to(folder: Path, root: Path) -> list[Path]:
    """A folder and those above it, up to root; the nearest first."""
    return [folder, *(above for above in folder.parents if above.is_relative_to(root))] if folder != root else [root]


def _out_of_range(own: FolderSettings) -> list[str]:
    problems = []
    if own.repeats is not None and not 1 <= own.repeats <= MOST_REPEATS:
        problems.append(f"repeats is {own.repeats}; it must be from 1 to {MOST_REPEATS}.")
    try:
        DatasetSettings().of_folder(own)
    except InputError as error:
        problems += error.problems
    return problems


def _check_mask(picture: Path, facts: PictureFacts, mask: Path, mask_facts: PictureFacts) -> None:
    if not same_aspect((facts.width, facts.height), (mask_facts.width, mask_facts.height)):
        raise PictureError(
            f"{picture.name} is {facts.width} x {facts.height}, but its mask {mask.name} is "
            f"{mask_facts.width} x {mask_facts.height}: give it the picture's aspect ratio."
        )


def _problems_of_mask(number: int, size: tuple[int, int], mask: torch.Tensor) -> list[str]:
    if mask.max() <= 0:
        return [
            f"the mask of image {number} is black all over, and white is what is learned: take it off, "
            "or put Invert Mask behind Load Image, whose mask is white where a picture is transparent."
        ]
    is_even = mask.min() == mask.max()  # stretched it stays the same
    if not is_even and not same_aspect(size, (mask.shape[1], mask.shape[0])):
        return [
            f"the mask of image {number} is {mask.shape[1]} x {mask.shape[0]} for a picture of {size[0]} x {size[1]}: "
            "give it the picture's aspect ratio."
        ]
    return []


def _one_each(values: Sequence, count: int) -> list:
    return list(values) * count if len(values) == 1 else list(values)


def _opaque(image: torch.Tensor) -> torch.Tensor | None:
    """How opaque each pixel of an image is; None where all are."""
    return image[..., 3] if image.shape[-1] == 4 and image[..., 3].min() < 1 else None


def _over_white(image: torch.Tensor) -> torch.Tensor:
    image = image.clone()
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        image = image[..., :3] * alpha + (1.0 - alpha)
    return image[..., :3].expand(*image.shape[:2], 3)
