"""The dataset of a run: pictures with captions, and the samples and batches of each epoch."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..basics.randomness import python_random
from .buckets import Fit, crops, fit_picture
from .captions import drop_tags, one_line, shuffle_tags
from .captions import with_trigger as caption_with_trigger
from .dataset_settings import DatasetSettings
from .folder_settings import FolderSettings
from .pictures import fit_mask, fit_pixels, load_alpha, load_mask, load_picture, to_image, to_mask_image

SHUFFLE_VARIANTS = 8
"""Number of random variants of a picture's tags; few, since each text is encoded and cached."""


@dataclass(frozen=True)
class Picture:
    """One picture with its caption."""

    name: str
    """path in its folder, or "image 1"; for messages"""
    width: int
    """pixels, after EXIF rotation"""
    height: int
    caption: str = ""
    repeats: int = 1
    """times in an epoch"""
    is_regularisation: bool = False
    path: Path | None = None
    """the file; None for a picture from the graph"""
    pixels: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """(H, W, 3) in [0, 1] for a picture from the graph"""
    mask_path: Path | None = None
    """the mask's file"""
    mask_pixels: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """(H, W) in [0, 1] for a mask from the graph, white = learn"""
    is_transparent: bool = False
    """some pixels of the file are transparent; its opacity is the mask if there is no other"""
    folder: FolderSettings = FolderSettings()
    """settings of its folder, from dataset.toml"""
    caption_file: Path | None = field(default=None, compare=False)
    """the file that the caption stands in"""

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask to weight the loss by."""
        return self.mask_path is not None or self.mask_pixels is not None or self.is_transparent

    def load(self, fit: Fit) -> torch.Tensor:
        """The picture, scaled and cropped: (H, W, 3) float32 in [0, 1]."""
        if self.path is not None:
            return load_picture(self.path, fit, (self.width, self.height))
        assert self.pixels is not None
        return fit_pixels(to_image(self.pixels), fit)

    def load_mask(self, fit: Fit) -> torch.Tensor | None:
        """The mask, scaled and cropped as the picture, white = learn: (H, W) float32 in [0, 1]; None without one."""
        if self.mask_path is not None:
            return load_mask(self.mask_path, fit)
        if self.mask_pixels is not None:
            return fit_mask(to_mask_image(self.mask_pixels), fit)
        if self.is_transparent and self.path is not None:
            return load_alpha(self.path, fit)
        return None


@dataclass(frozen=True)
class Sample:
    """One picture of a batch: its crop, flip and caption."""

    picture: int
    """index into the dataset's pictures"""
    fit: Fit
    """its bucket and crop"""
    flipped: bool
    caption: str


@dataclass(frozen=True)
class Dataset:
    """Pictures with captions, and settings of the samples drawn from them."""

    pictures: tuple[Picture, ...]
    settings: DatasetSettings = DatasetSettings()
    name: str = "dataset"
    problems: tuple[str, ...] = ()
    """a sentence for each file that was left out"""
    settings_files: tuple[str, ...] = ()
    """the dataset.toml files that were read"""
    notes: tuple[str, ...] = ()
    """sentences about files beside the pictures that are not read, or read for several"""

    def fits(self, resolution: int | None = None) -> list[Fit]:
        """Each picture's bucket and centre crop at one resolution; None = the main one."""
        return self._fits[resolution or self.settings.resolution]

    @cached_property
    def _fits(self) -> dict[int, list[Fit]]:
        sizes = {resolution: self.settings.bucket_sizes(resolution) for resolution in self.settings.resolutions()}
        return {
            resolution: [fit_picture(picture.width, picture.height, buckets) for picture in self.pictures]
            for resolution, buckets in sizes.items()
        }

    def settings_of(self, index: int) -> DatasetSettings:
        """The settings of one picture: its folder's dataset.toml overrides the dataset's."""
        return self._settings[self.pictures[index].folder]

    @cached_property
    def _settings(self) -> dict[FolderSettings, DatasetSettings]:
        return {folder: self.settings.of_folder(folder) for folder in {picture.folder for picture in self.pictures}}

    def is_masked(self, index: int) -> bool:
        """Whether the loss of a picture is weighted by a mask."""
        return self.settings_of(index).masked_loss and self.pictures[index].has_mask

    def caption(self, index: int) -> str:
        """A picture's caption before shuffling and dropout; a regularisation picture's is unchanged."""
        picture, settings = self.pictures[index], self.settings_of(index)
        if picture.is_regularisation:
            return picture.caption
        caption = f"{settings.caption_prefix}{picture.caption}{settings.caption_suffix}".strip()
        return caption_with_trigger(caption, settings.trigger_word)

    def with_captions(self, captions: dict[int, str]) -> "Dataset":
        """A copy with other captions.

        Args:
            captions: by the pictures' indices.
        """
        pictures = tuple(
            replace(picture, caption=captions[index]) if index in captions else picture
            for index, picture in enumerate(self.pictures)
        )
        return replace(self, pictures=pictures)

    def epoch_batches(self, epoch: int, batch_size: int, seed: int) -> list[list[Sample]]:
        """The batches of an epoch, each of one bucket, in random order; a function of the arguments alone.

        Each training picture is in the epoch `repeats` times at each resolution. Regularisation pictures fill it up to
        as many samples again; the next epoch continues with those that follow (as in kohya's trainer).
        """
        random = python_random(seed, epoch, "order")
        entries, prior = self._entries(is_regularisation=False), self._entries(is_regularisation=True)
        if prior:
            python_random(seed, "prior").shuffle(prior)
            start = epoch * len(entries)
            entries = entries + [prior[(start + n) % len(prior)] for n in range(len(entries))]
        random.shuffle(entries)
        buckets: dict[tuple[int, int], list[Sample]] = {}
        for slot, (index, resolution) in enumerate(entries):
            sample = self._sample(index, resolution, epoch, slot, seed)
            buckets.setdefault((sample.fit.width, sample.fit.height), []).append(sample)
        batches = [
            samples[start : start + batch_size]
            for _, samples in sorted(buckets.items())
            for start in range(0, len(samples), batch_size)
        ]
        random.shuffle(batches)
        return batches

    def loss_weight(self, sample: Sample) -> float:
        """The picture's loss_weight, times prior_loss_weight for a regularisation picture."""
        settings = self.settings_of(sample.picture)
        is_prior = self.pictures[sample.picture].is_regularisation
        return settings.loss_weight * (settings.prior_loss_weight if is_prior else 1.0)

    def _entries(self, is_regularisation: bool) -> list[tuple[int, int]]:
        """(picture index, resolution), `repeats` times for each picture and resolution."""
        return [
            (index, resolution)
            for index, picture in enumerate(self.pictures)
            if picture.is_regularisation == is_regularisation
            for resolution in self.settings.resolutions()
            for _ in range(picture.repeats)
        ]

    def _sample(self, index: int, resolution: int, epoch: int, slot: int, seed: int) -> Sample:
        settings = self.settings_of(index)
        random = python_random(seed, epoch, slot, "augmentation")
        fit = self.fits(resolution)[index]
        if settings.random_crop:
            fit = python_random(seed, epoch, slot, "crop").choice(crops(fit))
        flipped = settings.flip and random.random() < 0.5
        if random.random() < settings.caption_dropout:
            return Sample(index, fit, flipped, "")
        caption = self.caption(index)
        if settings.shuffle_tags or settings.tag_dropout:
            key = (seed, index, random.randrange(SHUFFLE_VARIANTS))
            if settings.tag_dropout:
                caption = drop_tags(caption, settings.keep_tokens, settings.tag_dropout, *key, "tag dropout")
            if settings.shuffle_tags:
                caption = shuffle_tags(caption, settings.keep_tokens, *key, "tags")
        return Sample(index, fit, flipped, caption)


def bucket_table(dataset: Dataset) -> dict[tuple[int, int], int]:
    """Bucket (width, height) -> number of pictures in it, over all resolutions, without repeats."""
    table: dict[tuple[int, int], int] = {}
    for resolution in dataset.settings.resolutions():
        for fit in dataset.fits(resolution):
            table[fit.width, fit.height] = table.get((fit.width, fit.height), 0) + 1
    return dict(sorted(table.items()))


def caption_lines(dataset: Dataset) -> str:
    """All captions before shuffling and dropout, a line each."""
    return "\n".join(one_line(dataset.caption(index)) for index in range(len(dataset.pictures)))


def size_conditioning(picture: Picture, fit: Fit, flipped: bool = False) -> dict[str, Any]:
    """SDXL's size and crop conditioning of a sample, by ComfyUI's names (Podell et al., arXiv:2307.01952, section 2.2).

    The crop is in pixels of the scaled picture, from its left edge, or from its right edge if it is flipped.
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
    """A sentence for each picture that is smaller than its largest bucket, so that it is trained on enlarged."""
    return [
        f"{picture.name} is {picture.width} x {picture.height}, trained at {fit.width} x {fit.height}"
        for picture, fit in zip(dataset.pictures, dataset.fits(max(dataset.settings.resolutions())), strict=True)
        if is_enlarged(picture, fit)
    ]


def unreadable(picture: Picture, error: Exception) -> str:
    """The message about a picture whose file can no longer be read."""
    return f"{picture.name} cannot be read any more ({error}): put it back, or queue again without it."


def is_enlarged(picture: Picture, fit: Fit) -> bool:
    """Whether scaling enlarges a picture's area by more than 10 %."""
    return fit.scaled_width * fit.scaled_height > 1.1 * picture.width * picture.height
