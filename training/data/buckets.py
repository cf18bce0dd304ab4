"""Aspect buckets: picture sizes of about one area, so that pictures keep their proportions and little is cropped."""

import math
from dataclasses import dataclass, replace

CROP_VARIANTS = 8
"""Number of random crops of a picture; few, since each is encoded and cached."""


@dataclass(frozen=True)
class Fit:
    """How a picture is fitted into its bucket: scaled to cover it, then cropped."""

    width: int
    """of the bucket, pixels"""
    height: int
    scaled_width: int
    """of the scaled picture, pixels"""
    scaled_height: int
    left: int
    """scaled pixels cropped at the left"""
    top: int


def bucket_sizes(resolution: int, step: int, shortest: int, longest: int) -> list[tuple[int, int]]:
    """All buckets (width, height): multiples of step, of an area of at most resolution squared.

    Each width has its largest possible height; all sides are between shortest and longest.
    """
    area = max(resolution, step) ** 2
    low, high = max(step, -_floor(-shortest, step)), max(step, _floor(longest, step))
    sizes = set()
    for side in range(low, high + 1, step):
        other = min(high, _floor(area // side, step))
        if other >= low:
            sizes |= {(side, other), (other, side)}
    square = min(high, _floor(resolution, step) or step)
    return sorted(sizes | {(square, square)})


def fit_picture(width: int, height: int, sizes: list[tuple[int, int]]) -> Fit:
    """The bucket nearest in aspect ratio, the largest of several, and the centre crop into it."""
    ratio = math.log(width / height)
    bucket = min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - ratio), -size[0] * size[1]))
    scale = max(bucket[0] / width, bucket[1] / height)
    scaled = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    return Fit(*bucket, *scaled, (scaled[0] - bucket[0]) // 2, (scaled[1] - bucket[1]) // 2)


def crops(fit: Fit) -> list[Fit]:
    """CROP_VARIANTS crops of the same size, at even distances from one end of the scaled picture to the other."""
    across, down = fit.scaled_width - fit.width, fit.scaled_height - fit.height
    steps = CROP_VARIANTS - 1
    return [
        replace(fit, left=round(across * step / steps), top=round(down * step / steps)) for step in range(CROP_VARIANTS)
    ]


def _floor(value: int, step: int) -> int:
    return value // step * step
