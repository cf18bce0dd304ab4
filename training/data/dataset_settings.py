"""Settings of a dataset: resolutions, buckets, augmentation, captions and loss weights."""

import math
from dataclasses import dataclass, fields, replace

from ..basics.errors import raise_if_any
from ..basics.numbers import is_whole, keep_as_whole
from .buckets import bucket_sizes
from .folder_settings import FolderSettings


@dataclass(frozen=True)
class DatasetSettings:
    """How pictures and captions become samples."""

    resolution: int = 512
    """pixels; the area of a bucket is at most its square"""
    extra_resolutions: str = ""
    """further ones, as in "768, 1024": an epoch has each picture once at each resolution"""
    bucket_step: int = 64
    """pixels; the sides of a bucket are multiples of it"""
    shortest_side: int = 256
    """pixels; the shortest side of a bucket"""
    longest_side: int = 2048
    """pixels; the longest side of a bucket"""
    flip: bool = False
    """mirror each picture with probability 0.5"""
    random_crop: bool = False
    """crop each picture to its bucket at random places instead of the centre"""
    trigger_word: str = ""
    """prepended to captions without it"""
    caption_prefix: str = ""
    """prepended to each caption"""
    caption_suffix: str = ""
    """appended to each caption"""
    shuffle_tags: bool = False
    """shuffle the comma-separated tags of each caption"""
    keep_tokens: int = 0
    """number of first tags that are neither shuffled nor dropped"""
    tag_dropout: float = 0.0
    """probability of each further tag to be dropped"""
    caption_dropout: float = 0.0
    """probability of a sample to have an empty caption"""
    masked_loss: bool = False
    """weight the loss by each picture's mask, or by its opacity"""
    unmasked_weight: float = 0.0
    """weight where the mask is black"""
    loss_weight: float = 1.0
    """a factor on each picture's loss"""
    prior_loss_weight: float = 1.0
    """a further factor on the loss of regularisation pictures"""

    def __post_init__(self) -> None:
        not_whole = [
            f"{name} is {value!r}; it must be a whole number, such as {usual}."
            for name, usual in _WHOLE.items()
            if not is_whole(value := getattr(self, name))
        ]
        raise_if_any("Load Dataset", not_whole)
        keep_as_whole(self, _WHOLE)
        problems = []
        if not 64 <= self.resolution <= 4096:
            problems.append(
                f"resolution is {self.resolution}; it must be from 64 to 4096 pixels: "
                "512 suits SD1.5, 1024 SDXL and later models."
            )
        for entry in filter(None, map(str.strip, self.extra_resolutions.split(","))):
            if not entry.isdecimal() or len(entry) > 9 or not 64 <= int(entry) <= 4096:
                problems.append(
                    f"extra_resolutions has {entry!r:.200}; it must be whole numbers from 64 to 4096 with commas "
                    "between."
                )
        if self.bucket_step < 8 or self.bucket_step % 8:
            problems.append(f"bucket_step is {self.bucket_step}; it must be a multiple of 8 pixels; 64 is usual.")
        if self.shortest_side > self.longest_side:
            problems.append(
                f"shortest_side is {self.shortest_side}, above longest_side, {self.longest_side}: swap them."
            )
        for name in ("caption_dropout", "tag_dropout", "unmasked_weight"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                problems.append(f"{name} is {getattr(self, name)}; it must be from 0 to 1; 0 turns it off.")
        for name in ("prior_loss_weight", "loss_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                problems.append(f"{name} is {getattr(self, name)}; it must be a number of at least 0; 1 is usual.")
        if self.keep_tokens < 0:
            problems.append(
                f"keep_tokens is {self.keep_tokens}; it must be at least 0; 1 keeps the trigger word in front."
            )
        raise_if_any("Load Dataset", problems)

    def resolutions(self) -> tuple[int, ...]:
        """All distinct resolutions, the main one first."""
        extra = (int(entry.strip()) for entry in self.extra_resolutions.split(",") if entry.strip())
        return tuple(dict.fromkeys((self.resolution, *extra)))

    def bucket_sizes(self, resolution: int | None = None) -> list[tuple[int, int]]:
        """All buckets (width, height) of one resolution; None = the main one."""
        resolution = resolution or self.resolution
        shortest = min(self.shortest_side, resolution)
        return bucket_sizes(resolution, self.bucket_step, shortest, self.longest_side)

    def of_folder(self, folder: FolderSettings) -> "DatasetSettings":
        """These settings, with those that a folder sets in their place."""
        return replace(self, **{key: value for key, value in folder.set_values().items() if key in _NAMES})


_NAMES = {each.name for each in fields(DatasetSettings)}
_WHOLE = {each.name: each.default for each in fields(DatasetSettings) if type(each.default) is int}
"""fields that are whole numbers -> their defaults"""
