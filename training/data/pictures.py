"""Picture files in: any kind that Pillow reads, as upright RGB, and their masks."""

import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .buckets import Fit

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF")
"""what may lie in such a file, by Pillow's names: some of its others start programs or fetch what they name"""
SMALLEST_SIDE = 16
"""pixels; less holds nothing to learn"""
PACKED_BMP = (1, 2)
"""run lengths, which Pillow unpacks in Python: some bytes can hold the whole server up for half a minute"""
LARGEST_AREA = 170_000_000
"""pixels; beyond this one picture would take gigabytes to decode"""


SAME_ASPECT = 0.02
"""a mask may differ from its picture's aspect ratio by this share, as rounding to pixels does"""


class PictureError(ValueError):
    """A picture that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture file once it was read as a whole."""

    width: int
    """pixels, upright"""
    height: int
    is_transparent: bool
    """some of it is"""
    digest: str
    """SHA-256 of the file"""


def picture_facts(path: Path) -> PictureFacts:
    """Reads and decodes the whole file.

    Raises:
        PictureError: it cannot be used.
    """
    width, height = picture_size(path)
    with _decoding(path), _opened(path) as image:
        image.load()
        alpha = _alpha(image)
        is_transparent = alpha is not None and np.asarray(alpha).min() < 255
    return PictureFacts(width, height, bool(is_transparent), _digest(path))


def same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two (width, height) have one aspect ratio, but for rounding."""
    return abs(math.log(first[0] * second[1] / (first[1] * second[0]))) <= SAME_ASPECT


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown, read from the header only.

    Raises:
        PictureError: no picture, too small, too large.
    """
    with _decoding(path), _opened(path) as image:
        width, height = image.size
        if width * height > LARGEST_AREA:  # before all else: a PNG is decoded for its EXIF
            raise PictureError(
                f"{path.name} is {width} x {height} pixels: more than {LARGEST_AREA // 1_000_000} million. "
                "Scale it down."
            )
        if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):
            width, height = height, width
    if min(width, height) < SMALLEST_SIDE:
        raise PictureError(
            f"{path.name} is {width} x {height} pixels: at least {SMALLEST_SIDE} a side are needed. Remove it."
        )
    return width, height


def check_picture(path: Path) -> None:
    """Decodes the whole file once.

    Raises:
        PictureError: truncated or damaged.
    """
    with _decoding(path), _opened(path) as image:
        image.load()


def load_picture(path: Path, fit: Fit) -> torch.Tensor:
    """The picture in its bucket: (H, W, 3) float32 in [0, 1]."""
    with _decoding(path), _opened(path) as image:
        image.draft("RGB", (fit.scaled_width, fit.scaled_height))
        image.load()
        rgb = _to_rgb(ImageOps.exif_transpose(image))
    return fit_pixels(rgb, fit)


def thumbnail(path: Path, side: int) -> Image.Image:
    """The whole picture, upright, as RGB of at most so many pixels a side.

    Raises:
        PictureError: it cannot be used.
    """
    picture_size(path)
    with _decoding(path), _opened(path) as image:
        image.draft("RGB", (side, side))
        image.load()
        upright = _to_rgb(ImageOps.exif_transpose(image))
    upright.thumbnail((side, side), Image.Resampling.LANCZOS)
    return upright


def load_mask(path: Path, fit: Fit) -> torch.Tensor:
    """A mask file in its picture's bucket, white = 1: (H, W) float32 in [0, 1]; its own transparency is black."""
    with _decoding(path), _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        alpha = _alpha(upright)
        grey = _to_8_bits(upright).convert("L")
    if alpha is not None:
        grey = Image.composite(grey, Image.new("L", grey.size, 0), alpha)
    return fit_mask(grey, fit)


def load_alpha(path: Path, fit: Fit) -> torch.Tensor:
    """How opaque a picture is, in its bucket: (H, W) float32 in [0, 1]."""
    with _decoding(path), _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        alpha = _alpha(upright)
    return fit_mask(Image.new("L", upright.size, 255) if alpha is None else alpha, fit)


def fit_mask(mask: Image.Image, fit: Fit) -> torch.Tensor:
    """A grey mask scaled, by area, and cut as its picture is: (H, W) float32 in [0, 1]."""
    cut = mask.resize((fit.width, fit.height), Image.Resampling.BOX, _cut(mask, fit))
    return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255.0)


def fit_pixels(image: Image.Image, fit: Fit) -> torch.Tensor:
    """An RGB image scaled and cut into its bucket: (H, W, 3) float32 in [0, 1]."""
    cut = image.resize((fit.width, fit.height), Image.Resampling.LANCZOS, _cut(image, fit))
    return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255.0)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """An RGB image from (H, W, 3) in [0, 1]."""
    array = (pixels.detach().cpu().float().clamp(0, 1) * 255.0).round().to(torch.uint8).numpy()
    return Image.fromarray(array, "RGB")


def to_mask_image(mask: torch.Tensor) -> Image.Image:
    """A grey image from (H, W) in [0, 1]."""
    return to_image(mask[..., None].expand(*mask.shape, 3)).getchannel(0)


def _cut(image: Image.Image, fit: Fit) -> tuple[float, float, float, float]:
    """What the fit keeps, in the image's own pixels: left, top, right, bottom."""
    x, y = image.width / fit.scaled_width, image.height / fit.scaled_height
    return (fit.left * x, fit.top * y, (fit.left + fit.width) * x, (fit.top + fit.height) * y)


def _opened(path: Path) -> Image.Image:
    if path.stat().st_size == 0:
        raise PictureError(f"{path.name} is an empty file: remove it or copy it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_known_formats())
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path.name} has too many pixels to decode: scale it down.") from error
    except Exception as error:  # Pillow's readers let any error of theirs out
        kinds = ", ".join(FORMATS)
        raise PictureError(
            f"{path.name} is not a picture Pillow can read ({kinds}): remove it or save it again."
        ) from error
    if image.info.get("compression") in PACKED_BMP and image.format == "BMP":
        image.close()
        raise PictureError(f"{path.name} is a compressed BMP, which takes too long to decode: save it as PNG.")
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except PictureError:
        raise
    except Exception as error:  # Pillow's readers let any error of theirs out
        raise PictureError(f"{path.name} is damaged or cut short ({error}): copy it again or remove it.") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _to_rgb(image: Image.Image) -> Image.Image:
    """First frame, 8 bits, transparency over white."""
    image = _to_8_bits(image)
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    values = np.asarray(image, dtype=np.float64)
    top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0.0) > 255.0 else 255.0
    return Image.fromarray(np.clip(values / top * 255.0, 0, 255).round().astype(np.uint8), "L")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _alpha(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel is, where the picture says it; a grey picture of 16 bits never does."""
    image = _to_8_bits(image)
    return image.convert("RGBA").getchannel("A") if _has_alpha(image) else None
