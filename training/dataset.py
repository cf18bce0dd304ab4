"""The data of a run: which pictures, with which captions, in which buckets, in which order."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .buckets import Fit, bucket_sizes, fit_picture
from .captions import METADATA, SIDECARS, CaptionFileError, read_metadata, read_text, shuffle_tags, sidecar
from .captions import with_trigger as caption_with_trigger
from .folders import files_below
from .pictures import (
    ENDINGS,
    SMALLEST_SIDE,
    PictureError,
    check_picture,
    fit_pixels,
    load_picture,
    picture_size,
    to_image,
)
from .problems import raise_if_any
from .randomness import python_random

SHUFFLE_VARIANTS = 8
"""Tag orders a picture is seen in; bounded, so that each text is encoded once."""


@dataclass(frozen=True)
class DatasetSettings:
    """How pictures and captions become samples."""

    resolution: int = 512
    """pixels; buckets have at most this squared as area"""
    bucket_step: int = 64
    """pixels; bucket sides are multiples of it"""
    shortest_side: int = 256
    """pixels; no bucket side is below it"""
    longest_side: int = 2048
    """pixels; no bucket side is above it"""
    flip: bool = False
    """show each picture mirrored half of the time"""
    trigger_word: str = ""
    """put in front of captions that lack it"""
    shuffle_tags: bool = False
    """comma-separated tags in another order each time"""
    keep_tokens: int = 0
    """tags at the front that stay in place"""
    caption_dropout: float = 0.0
    """share of samples trained with an empty caption"""
    prior_loss_weight: float = 1.0
    """weight of a regularisation picture's loss"""

    def __post_init__(self) -> None:
        problems = []
        if not 64 <= self.resolution <= 4096:
            problems.append(f"resolution is {self.resolution}; it must be from 64 to 4096 pixels.")
        if self.bucket_step < 8 or self.bucket_step % 8:
            problems.append(f"bucket_step is {self.bucket_step}; it must be a multiple of 8 pixels.")
        if self.shortest_side > self.longest_side:
            problems.append(
                f"shortest_side is {self.shortest_side}, above longest_side, {self.longest_side}: swap them."
            )
        if not 0.0 <= self.caption_dropout <= 1.0:
            problems.append(f"caption_dropout is {self.caption_dropout}; it must be from 0 to 1.")
        if self.prior_loss_weight < 0.0:
            problems.append(f"prior_loss_weight is {self.prior_loss_weight}; it must be at least 0.")
        if self.keep_tokens < 0:
            problems.append(f"keep_tokens is {self.keep_tokens}; it must be at least 0.")
        raise_if_any("Load Dataset", problems)

    def bucket_sizes(self) -> list[tuple[int, int]]:
        """All (width, height) a picture can be trained at."""
        shortest = min(self.shortest_side, self.resolution)
        return bucket_sizes(self.resolution, self.bucket_step, shortest, self.longest_side)


@dataclass(frozen=True)
class Picture:
    """One picture with its caption."""

    name: str
    """what messages call it"""
    width: int
    """pixels, upright"""
    height: int
    caption: str = ""
    repeats: int = 1
    """times in an epoch"""
    is_regularisation: bool = False
    path: Path | None = None
    """the file; None for a picture from the graph"""
    pixels: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """(H, W, 3) in [0, 1] for a picture from the graph"""

    def load(self, fit: Fit) -> torch.Tensor:
        """The picture in its bucket: (H, W, 3) float32 in [0, 1]."""
        if self.path is not None:
            return load_picture(self.path, fit)
        assert self.pixels is not None
        return fit_pixels(to_image(self.pixels), fit)


@dataclass(frozen=True)
class Sample:
    """What is trained on in one slot of a batch."""

    picture: int
    """index into the dataset's pictures"""
    flipped: bool
    caption: str


@dataclass(frozen=True)
class Dataset:
    """Pictures, captions and how to draw from them."""

    pictures: tuple[Picture, ...]
    settings: DatasetSettings = DatasetSettings()
    name: str = "dataset"
    problems: tuple[str, ...] = ()
    """what was left out, and why"""

    def fits(self) -> list[Fit]:
        """Each picture's bucket and cut."""
        return self._fits

    @cached_property
    def _fits(self) -> list[Fit]:
        sizes = self.settings.bucket_sizes()
        return [fit_picture(picture.width, picture.height, sizes) for picture in self.pictures]

    def caption(self, index: int) -> str:
        """A picture's caption as trained, before shuffling and dropout."""
        picture = self.pictures[index]
        if picture.is_regularisation:
            return picture.caption
        return caption_with_trigger(picture.caption, self.settings.trigger_word)

    def with_captions(self, captions: dict[int, str]) -> "Dataset":
        """A copy with other captions for some pictures, by index."""
        pictures = tuple(
            replace(picture, caption=captions[index]) if index in captions else picture
            for index, picture in enumerate(self.pictures)
        )
        return replace(self, pictures=pictures)

    def epoch_batches(self, epoch: int, batch_size: int, seed: int) -> list[list[Sample]]:
        """The batches of an epoch, each within one bucket; a function of the arguments alone.

        Regularisation pictures are drawn until they are as many as the training samples, going on in the next
        epoch where this one stopped (as kohya's trainer balances them).
        """
        random = python_random(seed, epoch, "order")
        indices = [i for i, p in enumerate(self.pictures) for _ in range(p.repeats) if not p.is_regularisation]
        prior = [i for i, p in enumerate(self.pictures) for _ in range(p.repeats) if p.is_regularisation]
        if prior:
            python_random(seed, "prior").shuffle(prior)
            start = epoch * len(indices)
            indices = indices + [prior[(start + n) % len(prior)] for n in range(len(indices))]
        random.shuffle(indices)
        fits = self.fits()
        buckets: dict[tuple[int, int], list[Sample]] = {}
        for slot, index in enumerate(indices):
            bucket = (fits[index].width, fits[index].height)
            buckets.setdefault(bucket, []).append(self._sample(index, epoch, slot, seed))
        batches = [
            samples[start : start + batch_size]
            for _, samples in sorted(buckets.items())
            for start in range(0, len(samples), batch_size)
        ]
        random.shuffle(batches)
        return batches

    def loss_weight(self, sample: Sample) -> float:
        """1, or prior_loss_weight for a regularisation picture."""
        is_prior = self.pictures[sample.picture].is_regularisation
        return self.settings.prior_loss_weight if is_prior else 1.0

    def _sample(self, index: int, epoch: int, slot: int, seed: int) -> Sample:
        random = python_random(seed, epoch, slot, "augmentation")
        flipped = self.settings.flip and random.random() < 0.5
        if random.random() < self.settings.caption_dropout:
            return Sample(index, flipped, "")
        caption = self.caption(index)
        if self.settings.shuffle_tags:
            variant = random.randrange(SHUFFLE_VARIANTS)
            caption = shuffle_tags(caption, self.settings.keep_tokens, seed, index, variant, "tags")
        return Sample(index, flipped, caption)


def read_folder(folder: Path, is_regularisation: bool = False, repeats: int = 1) -> tuple[list[Picture], list[str]]:
    """The pictures of a folder and of the folders in it, with their captions.

    A folder called `10_name` repeats its pictures 10 times (kohya's rule). A caption is looked for in `.txt`, in
    `.caption`, then in the folder's metadata.jsonl; without one it is empty.

    Returns:
        The usable pictures in name order, and a sentence for each that is not.
    """
    pictures, problems = [], []
    metadata: dict[Path, dict[str, str]] = {}
    for path in picture_files(folder):
        for place in _folders_between(path.parent, folder):
            if place not in metadata:
                metadata[place], found = read_metadata(place)
                problems += found
        try:
            width, height = picture_size(path)
            check_picture(path)
            caption_file = sidecar(path)
            caption = read_text(caption_file) if caption_file else _from_metadata(path, folder, metadata)
        except (PictureError, CaptionFileError) as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"{path.name} cannot be opened: {error.strerror}.")
            continue
        count = repeats * folder_repeats(path.parent, folder)
        name = path.relative_to(folder).as_posix()
        pictures.append(Picture(name, width, height, caption, count, is_regularisation, path))
    return pictures, problems


def _folders_between(place: Path, root: Path) -> list[Path]:
    """A folder and those above it, up to root."""
    return [place, *(above for above in place.parents if above.is_relative_to(root))] if place != root else [root]


def _from_metadata(path: Path, root: Path, metadata: dict[Path, dict[str, str]]) -> str:
    """The caption in the nearest metadata.jsonl that names the picture, by its path from there."""
    for place in _folders_between(path.parent, root):
        caption = metadata[place].get(path.relative_to(place).as_posix())
        if caption is not None:
            return caption
    return ""


def picture_files(folder: Path) -> list[Path]:
    """All picture files in a folder and the folders in it, in name order; hidden ones left out."""
    return [path for path in files_below(folder) if path.suffix.lower() in ENDINGS]


def folder_repeats(folder: Path, root: Path) -> int:
    """The repeats that a folder's name asks for: 10 for `10_name`; the nearest such folder up to root counts."""
    while True:
        match = re.match(r"(\d{1,4})_", folder.name)  # longer numbers are dates
        if match:
            return max(1, int(match.group(1)))
        if folder == root or folder.parent == folder:
            return 1
        folder = folder.parent


def folder_fingerprint(folder: Path) -> str:
    """Changes when a picture or caption in the folder is added, removed or changed."""
    digest = hashlib.sha256()
    wanted = (*ENDINGS, *SIDECARS)
    for path in files_below(folder):
        if path.suffix.lower() in wanted or path.name == METADATA:
            stat = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def pictures_from_images(batches: Sequence[torch.Tensor], captions: Sequence[str], repeats: int = 1) -> list[Picture]:
    """Pictures from the graph's IMAGEs.

    Args:
        batches: (B, H, W, C) each, in [0, 1]; C of 4 is put over white.
        captions: one a picture, one for all, or none.

    Raises:
        InputError: another number of captions; a picture that is too small.
    """
    images = [_without_alpha(image) for batch in batches for image in batch]
    problems = []
    if len(captions) not in (0, 1, len(images)):
        problems.append(
            f"captions has {len(captions)} lines for {len(images)} pictures: give one a picture, one for all, or none."
        )
    small = [image.shape for image in images if min(image.shape[:2]) < SMALLEST_SIDE]
    if small:
        problems.append(f"images holds a picture of {small[0][1]} x {small[0][0]} pixels: too small to learn from.")
    raise_if_any("Load Dataset", problems)
    texts = list(captions) * (len(images) if len(captions) == 1 else 1) or [""] * len(images)
    return [
        Picture(f"image {number}", image.shape[1], image.shape[0], text.strip(), repeats, pixels=image)
        for number, (image, text) in enumerate(zip(images, texts, strict=True), 1)
    ]


def bucket_table(dataset: Dataset) -> dict[tuple[int, int], int]:
    """How many pictures each bucket (width, height) holds, repeats not counted."""
    table: dict[tuple[int, int], int] = {}
    for fit in dataset.fits():
        table[fit.width, fit.height] = table.get((fit.width, fit.height), 0) + 1
    return dict(sorted(table.items()))


def size_conditioning(picture: Picture, fit: Fit, flipped: bool = False) -> dict[str, Any]:
    """SDXL's size and crop of one sample, in ComfyUI's names (Podell et al., arXiv:2307.01952, section 2.2).

    The crop is given in the scaled picture's pixels, from its left or, mirrored, from its right edge.
    """
    right = fit.scaled_width - fit.width - fit.left
    return dict(
        width=picture.width,
        height=picture.height,
        crop_w=right if flipped else fit.left,
        crop_h=fit.top,
        target_width=fit.width,
        target_height=fit.height,
    )


def upscaled(dataset: Dataset) -> list[str]:
    """The pictures that are smaller than their bucket, and so are trained on enlarged."""
    return [
        f"{picture.name} is {picture.width} x {picture.height}, trained at {fit.width} x {fit.height}"
        for picture, fit in zip(dataset.pictures, dataset.fits(), strict=True)
        if fit.scaled_width * fit.scaled_height > 1.1 * picture.width * picture.height
    ]


def _without_alpha(image: torch.Tensor) -> torch.Tensor:
    image = image.detach().float().cpu().clone()
    if image.shape[-1] == 4:
        alpha = image[..., 3:]
        image = image[..., :3] * alpha + (1.0 - alpha)
    return image[..., :3].expand(*image.shape[:2], 3)
