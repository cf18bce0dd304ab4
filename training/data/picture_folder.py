"""A folder of pictures with captions, masks and settings files beside them."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..basics.errors import InputError, raise_if_any
from ..basics.folders import file_state, files_below, fingerprint
from ..basics.paths import folded, is_unicode, leads_out, printable
from .caption_files import JSON, CaptionFiles
from .captions import (
    METADATA,
    SIDECARS,
    CaptionFileError,
    match_metadata,
    read_json_caption,
    read_metadata,
    read_text,
)
from .dataset import Picture
from .dataset_settings import DatasetSettings
from .folder_settings import SETTINGS_FILE, FolderSettings, read_folder_settings
from .picture_kinds import ENDINGS, KINDS, OTHER_ENDINGS, PHOTOS
from .pictures import PictureError, PictureFacts, picture_facts, same_aspect

MASK_MARKS = ("_mask", "-masklabel")
"""endings of a mask file's name, before its file ending (-masklabel is OneTrainer's)"""
LEADS_OUT = (
    "is a link that leads out of the folders that may be read: put what it leads to in its place, or let the person "
    "who runs the server allow that folder."
)
LISTS = (".jsonl", ".csv")
"""endings of files in which other programs list captions"""
MOST_REPEATS = 10_000
"""of one picture in an epoch; the order of an epoch is held in memory"""
Examine = Callable[[Path], PictureFacts]
"""`pictures.picture_facts` or `Cache.picture_facts`"""


@dataclass(frozen=True)
class FolderContents:
    """The pictures of a folder and its subfolders."""

    pictures: tuple[Picture, ...]
    """usable pictures, in name order"""
    problems: tuple[str, ...]
    """a sentence for each picture that is not used, and for captions that do not find theirs"""
    notes: tuple[str, ...]
    """sentences about files beside the pictures that are not read, or read for several"""
    settings_files: tuple[str, ...]
    """the settings files that were read"""


def read_folder(
    folder: Path,
    settings: DatasetSettings,
    is_regularisation: bool = False,
    repeats: int = 1,
    examine: Examine = picture_facts,
    on_picture: Callable[[int, int], None] = lambda done, total: None,
    within: Sequence[Path] = (),
) -> FolderContents:
    """The pictures of a folder and its subfolders, with their captions, masks and settings.

    A folder named `10_name` repeats its pictures 10 times (kohya's rule). A picture's caption is in its caption file
    (`CaptionFiles`), else the nearest metadata.jsonl, else its .json file; else it is empty. With masked_loss a
    picture's mask is `<name>_mask.png` or `<name>-masklabel.png` (or another picture ending) beside it, else its
    transparency. Mask files are never training pictures. A dataset.toml applies to its folder and subfolders; the
    nearest one counts.

    Args:
        settings: of the dataset, where no dataset.toml sets them.
        repeats: a factor on the repeats of all pictures.
        on_picture: called with (pictures done, pictures in all); may raise to interrupt.
        within: folders that links may lead into; none = `folder` alone.

    Raises:
        InputError: errors in dataset.toml files, all of them at once.
    """
    files = _PictureFiles(folder, within)
    folder_settings = _InheritedSettings(folder, {path.parent for path in files.pictures}, files.leads_out)
    raise_if_any("Load Dataset", folder_settings.problems)
    pictures, problems = [], []
    for done, path in enumerate(files.pictures):
        on_picture(done, len(files.pictures))
        here = folder_settings.of(path.parent)
        mask = files.masks.get(path.with_suffix(""))
        try:
            facts = examine(path)
            if settings.of_folder(here).masked_loss:
                mask_facts = mask and examine(mask)
                if mask and mask_facts:
                    _check_mask(path, facts, mask, mask_facts)
                if not settings.of_folder(here).unmasked_weight:
                    _check_weight(path, facts, mask, mask_facts)
            caption, caption_file = files.caption(path)
        except (PictureError, CaptionFileError) as error:
            problems.append(str(error))
            continue
        except OSError as error:
            name = Path(error.filename or path).name
            problems.append(f"{name} cannot be opened: {error.strerror}. Set its rights, or take it out of the folder.")
            continue
        picture = Picture(
            name=path.relative_to(folder).as_posix(),
            width=facts.width,
            height=facts.height,
            caption=caption,
            caption_file=caption_file,
            repeats=repeats * (folder_repeats(path.parent, folder) if here.repeats is None else here.repeats),
            is_regularisation=is_regularisation if here.regularisation is None else here.regularisation,
            path=path,
            mask_path=mask,
            is_transparent=facts.is_transparent,
            folder=here,
        )
        pictures.append(picture)
    notes, names = tuple(files.notes()), folder_settings.file_names
    return FolderContents(tuple(pictures), (*files.problems(), *problems), notes, names)


def current_captions(folder: Path) -> dict[str, str | None]:
    """Picture name -> its caption as the files are now; None = the caption cannot be read.

    Pictures are not opened, so unusable ones are included.
    """
    files, captions = _PictureFiles(folder), {}
    for path in files.pictures:
        try:
            caption, _ = files.caption(path)
        except (CaptionFileError, OSError):
            caption = None
        captions[path.relative_to(folder).as_posix()] = caption
    return captions


def folder_repeats(folder: Path, root: Path) -> int:
    """The repeats in the name of a folder, as 10 in `10_name`, or of the nearest folder above, up to root; else 1."""
    for above in _up_to(folder, root):
        match = re.match(r"(\d{1,4})_", above.name)  # longer numbers are dates
        if match:
            return max(1, int(match.group(1)))
    return 1


def folder_fingerprint(folder: Path, within: Sequence[Path] = ()) -> str:
    """A digest that changes when a picture, mask, caption or settings file is added, removed or modified."""
    digest = hashlib.sha256()
    wanted = (*ENDINGS, *OTHER_ENDINGS, *SIDECARS, *LISTS, JSON)
    for path in files_below(folder, None, within):
        if path.suffix.lower() in wanted or path.name == SETTINGS_FILE:
            try:
                state = fingerprint(path)
            except OSError:  # a broken link; unreadable
                state = file_state(path.lstat())
            line = f"{path.relative_to(folder)}\0{state}\n"
            digest.update(line.encode(errors="surrogatepass"))
    return digest.hexdigest()


class _PictureFiles:
    """The picture, mask and caption files of a folder and its subfolders."""

    def __init__(self, root: Path, within: Sequence[Path] = ()):
        self.root, self.within = root, within or (root,)
        left_out: list[Path] = []
        files, nameless = [], []
        for path in files_below(root, None, within, left_out):
            (files if is_unicode(str(path)) else nameless).append(path)
        images = _without_twins([path for path in files if path.suffix.lower() in ENDINGS])
        mask_files = _mask_files(images)
        self.pictures = [path for path in images if path not in mask_files]
        self.masks: dict[Path, Path] = {}
        """picture, without its ending -> its mask; the first of several"""
        for mask, picture in mask_files.items():
            self.masks.setdefault(picture, mask)
        self._files, self._images = files, images
        self._captions = CaptionFiles([*files, *left_out])
        self._metadata: dict[Path, tuple[Path, dict[Path, str]]] = {}
        """folder -> its metadata.jsonl, and picture -> caption in it"""
        self._unread: list[Path] = []
        """.json files of pictures without any other caption that hold none"""
        self._problems = [
            *(f"{printable(path.name)} lies under a name that is not Unicode: rename it." for path in nameless),
            *(
                f"{printable(path.name)} {LEADS_OUT}"
                for path in left_out
                if path.suffix.lower() in ENDINGS or _is_metadata(path) or path.is_dir()
            ),
            *self._read_metadata(files, images),
        ]

    def problems(self) -> list[str]:
        """A sentence for each picture that is not read, and for captions that do not find theirs."""
        return [*self._problems, *_unread_pictures(self._files, self._images)]

    def notes(self) -> list[str]:
        """Sentences about files that are not read, or read for several pictures; once all captions were asked for."""
        files, used = self._files, {file for image in self._images for file in self._captions.of(image)}
        hidden = [file for picture in self.pictures for file in self._captions.overlooked(picture)]
        before = "another caption file of the picture goes before: keep one of them."
        lone = [path for path in files if path.suffix.lower() in SIDECARS and path not in used]
        lists = [path for path in files if path.suffix.lower() in LISTS and not _is_metadata(path)]
        first = {picture: file for picture in self.pictures for file in self._captions.of(picture)[:1]}
        shared = [file for file, count in Counter(first.values()).items() if count > 1]
        share = (
            "stand beside several pictures, which share a caption: give each one of its full name, such as a.png.txt."
        )
        stems = Counter(path.with_suffix("") for path in self.pictures)
        names = Counter((path.parent, folded(path.name)) for path in self._images)
        alike = [path for path in self._images if names[path.parent, folded(path.name)] > 1]
        unlike = [path for path in files if path.name.lower() == SETTINGS_FILE != path.name]
        other = [path for path in unlike if not (path.parent / SETTINGS_FILE).exists()]
        twins = [path for path in self.pictures if path.suffix.lower() in PHOTOS and stems[path.with_suffix("")] > 1]
        return [
            *_counted("belong to no picture: name a caption as its picture.", "belongs", lone, self.root),
            *_counted(f"are not read, as {before}", "is", hidden, self.root),
            *_counted(f"are not read: put captions into .txt files or {METADATA}.", "is", lists, self.root),
            *_counted(share, "stands", shared, self.root),
            *_counted(f"are not read: write the name as {SETTINGS_FILE}.", "is", other, self.root),
            *_counted(
                "have names that differ in case or Unicode form alone: Windows and macOS keep one of them, rename the "
                "others.",
                "has",
                alike,
                self.root,
            ),
            *_counted("hold no caption that is known: write it into a .txt file.", "holds", self._unread, self.root),
            *_counted(
                "stand beside a picture of the same name: if both are one, keep one.", "stands", twins, self.root
            ),
        ]

    def leads_out(self, file: Path) -> bool:
        """Whether a file is a link that leads out of the folders that may be read."""
        return file.is_symlink() and leads_out(file, self.within)

    def caption(self, picture: Path) -> tuple[str, Path | None]:
        """(caption, file that it stands in): from the picture's caption file, the nearest metadata.jsonl or a .json."""
        for file in self._captions.of(picture)[:1]:
            return read_text(self._allowed(file)), file
        for folder in _up_to(picture.parent, self.root):
            file, captions = self._metadata.get(folder, (None, {}))
            if picture in captions:
                return captions[picture], file
        for file in self._captions.of(picture, (JSON,))[:1]:
            text = None if self.leads_out(file) else read_json_caption(file)
            if text is not None:
                return text, file
            self._unread.append(file)
        return "", None

    def _allowed(self, caption_file: Path) -> Path:
        if self.leads_out(caption_file):
            raise CaptionFileError(f"{caption_file.name} {LEADS_OUT}")
        return caption_file

    def _read_metadata(self, files: Iterable[Path], images: Sequence[Path]) -> list[str]:
        """Reads every metadata.jsonl; returns the problems."""
        all_problems = []
        for path in filter(_is_metadata, files):
            entries, problems = read_metadata(path.parent, path.name)
            captions, unmatched = match_metadata(entries, path.parent, images)
            self._metadata[path.parent] = (path, captions)
            all_problems += problems + unmatched
        return all_problems


class _InheritedSettings:
    """The settings of folders: those of their own dataset.toml, then of the folders above them up to root."""

    def __init__(self, root: Path, folders: Iterable[Path], is_refused: Callable[[Path], bool]):
        self.problems: list[str] = []
        self._root = root
        self._own: dict[Path, FolderSettings] = {}
        for folder in sorted({each for start in folders for each in _up_to(start, root)}):
            name = self._name(folder)
            if is_refused(folder / SETTINGS_FILE):
                self.problems.append(f"{name} {LEADS_OUT}")
                continue
            self._own[folder], problems = read_folder_settings(folder, name)
            self.problems += problems + [f"{name}: {problem}" for problem in _out_of_range(self._own[folder])]
        self._merged = {} if self.problems else {folder: self._merge(folder) for folder in folders}

    @property
    def file_names(self) -> tuple[str, ...]:
        """The files that were read, relative to root's parent."""
        return tuple(sorted(self._name(folder) for folder in self._own if (folder / SETTINGS_FILE).is_file()))

    def of(self, folder: Path) -> FolderSettings:
        """The settings that apply to a folder's pictures."""
        return self._merged[folder]

    def _merge(self, folder: Path) -> FolderSettings:
        merged = FolderSettings()
        for above in _up_to(folder, self._root):
            merged = merged.over(self._own[above])
        return merged

    def _name(self, folder: Path) -> str:
        return (folder / SETTINGS_FILE).relative_to(self._root.parent).as_posix()


def _is_metadata(path: Path) -> bool:
    return path.name.lower() == METADATA


def _counted(what: str, verb: str, files: Sequence[Path], root: Path) -> list[str]:
    """One sentence about all these files, which names the first; none where there are none.

    Args:
        what: is true of several of them.
        verb: its first word where there is only one.
    """
    if not files:
        return []
    name = files[0].relative_to(root).as_posix()
    if len(files) > 1:
        return [f"{name} and {len(files) - 1} more {what}"]
    return [f"{name} {verb} {what.partition(' ')[2]}"]


def _up_to(folder: Path, root: Path) -> list[Path]:
    """A folder and the folders above it up to root, nearest first."""
    return [folder, *(above for above in folder.parents if above.is_relative_to(root))] if folder != root else [root]


def _without_twins(images: list[Path]) -> list[Path]:
    """The pictures, but those that nothing here can read beside one of the same name that can be: phones store both."""
    unread = {ending for kind in KINDS if not kind.is_readable for ending in kind.endings}
    stems = {path.with_suffix("") for path in images if path.suffix.lower() not in unread}
    return [path for path in images if path.suffix.lower() not in unread or path.with_suffix("") not in stems]


def _mask_files(images: Sequence[Path]) -> dict[Path, Path]:
    """Mask file -> its picture, without the picture's ending; in the order of MASK_MARKS.

    Case and Unicode form matter only where several pictures differ in nothing else.
    """
    near: dict[tuple[Path, str], set[Path]] = {}
    for path in images:
        near.setdefault((path.parent, folded(path.stem)), set()).add(path.with_suffix(""))
    found: dict[Path, Path] = {}
    for mark in MASK_MARKS:
        for path in images:
            name = path.stem[: -len(mark)]
            if not name or not path.stem.lower().endswith(mark):
                continue
            stems = near.get((path.parent, folded(name)), set())
            own = {path.with_name(name)} & stems or stems
            if len(own) == 1:
                found[path] = next(iter(own))
    return found


def _out_of_range(settings: FolderSettings) -> list[str]:
    problems = []
    if settings.repeats is not None and not 1 <= settings.repeats <= MOST_REPEATS:
        problems.append(f"repeats is {settings.repeats}; it must be from 1 to {MOST_REPEATS}.")
    try:
        DatasetSettings().of_folder(settings)
    except InputError as error:
        problems += error.problems
    return problems


def _unread_pictures(files: Sequence[Path], images: Sequence[Path]) -> list[str]:
    """A sentence for each picture of a kind that is not read, unless one that is read has the same name."""
    stems = {path.with_suffix("") for path in images}
    return [
        f"{path.name} is a picture of a kind that is not read: save it as PNG or JPEG, or take it out of the folder."
        for path in files
        if path.suffix.lower() in OTHER_ENDINGS and path.with_suffix("") not in stems
    ]


def _check_mask(picture: Path, facts: PictureFacts, mask: Path, mask_facts: PictureFacts) -> None:
    if not same_aspect((facts.width, facts.height), (mask_facts.width, mask_facts.height)):
        raise PictureError(
            f"{picture.name} is {facts.width} x {facts.height}, but its mask {mask.name} is "
            f"{mask_facts.width} x {mask_facts.height}: give it the picture's aspect ratio."
        )


def _check_weight(picture: Path, facts: PictureFacts, mask: Path | None, mask_facts: PictureFacts | None) -> None:
    """Refuses a picture of which nothing would be learned."""
    if mask and mask_facts and mask_facts.is_black:
        raise PictureError(
            f"{picture.name} has a mask, {mask.name}, that is black all over, and white is what is learned: paint "
            "white what is to be learned, or take the mask or the picture out of the folder."
        )
    if mask is None and facts.is_clear:
        raise PictureError(
            f"{picture.name} is transparent all over, and with masked_loss what is transparent is not learned: save "
            "it without transparency, or take it out of the folder."
        )
