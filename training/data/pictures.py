"""Reading picture and mask files, in any safe format of Pillow, as upright RGB or grey."""

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
"""Pillow's names of the formats that are read; some other formats start programs or open further files"""
SMALLEST_SIDE = 16
"""pixels"""
RUN_LENGTH_BMP = (1, 2)
"""compressions of BMP that Pillow decodes in Python: a few bytes can block the server for half a minute"""
LARGEST_AREA = 170_000_000
"""pixels; a larger picture takes gigabytes to decode"""
SAME_ASPECT = 0.02
"""relative difference of two aspect ratios that counts as rounding to pixels"""


class PictureError(ValueError):
    """A picture that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class PictureFacts:
    """Facts about a picture file that was decoded without error."""

    width: int
    """pixels, after EXIF rotation"""
    height: int
    is_transparent: bool
    """some of its pixels are"""
    digest: str
    """SHA-256 of the file"""


def picture_facts(path: Path) -> PictureFacts:
    """Decodes a file and digests it.

    Raises:
        PictureError: the file cannot be used.
    """
    width, height = picture_size(path)
    with _decoding(path), _opened(path) as image:
        image.load()
        alpha = _alpha(image)
        is_transparent = alpha is not None and np.asarray(alpha).min() < 255
    return PictureFacts(width, height, bool(is_transparent), _digest(path))


def same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two (width, height) have the same aspect ratio within SAME_ASPECT."""
    return abs(math.log(first[0] * second[1] / (first[1] * second[0]))) <= SAME_ASPECT


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) after EXIF rotation, from the file's header alone.

    Raises:
        PictureError: not a picture, too small or too large.
    """
    with _decoding(path), _opened(path) as image:
        width, height = image.size
        if width * height > LARGEST_AREA:  # checked first, as getexif() decodes a PNG
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
    """Decodes a file.

    Raises:
        PictureError: the file is truncated or damaged.
    """
    with _decoding(path), _opened(path) as image:
        image.load()


def load_picture(path: Path, fit: Fit) -> torch.Tensor:
    """A picture, scaled and cropped into its bucket: (H, W, 3) float32 in [0, 1]."""
    with _decoding(path), _opened(path) as image:
        image.draft("RGB", (fit.scaled_width, fit.scaled_height))
        image.load()
        rgb = _to_rgb(ImageOps.exif_transpose(image))
    return fit_pixels(rgb, fit)


def thumbnail(path: Path, side: int) -> Image.Image:
    """A picture, upright, scaled down to at most `side` pixels on its longer side, RGB.

    Raises:
        PictureError: the file cannot be used.
    """
    picture_size(path)
    with _decoding(path), _opened(path) as image:
        image.draft("RGB", (side, side))
        image.load()
        upright = _to_rgb(ImageOps.exif_transpose(image))
    upright.thumbnail((side, side), Image.Resampling.LANCZOS)
    return upright


def load_mask(path: Path, fit: Fit) -> torch.Tensor:
    """A mask file, scaled and cropped as its picture, white = 1, transparent = 0: (H, W) float32 in [0, 1]."""
    with _decoding(path), _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        alpha = _alpha(upright)
        grey = _to_8_bits(upright).convert("L")
    if alpha is not None:
        grey = Image.composite(grey, Image.new("L", grey.size, 0), alpha)
    return fit_mask(grey, fit)


def load_alpha(path: Path, fit: Fit) -> torch.Tensor:
    """A picture's alpha channel, scaled and cropped as the picture: (H, W) float32 in [0, 1]; 1 without one."""
    with _decoding(path), _opened(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        alpha = _alpha(upright)
    return fit_mask(Image.new("L", upright.size, 255) if alpha is None else alpha, fit)


def fit_mask(mask: Image.Image, fit: Fit) -> torch.Tensor:
    """A grey mask, scaled by area and cropped as its picture: (H, W) float32 in [0, 1]."""
    fitted = mask.resize((fit.width, fit.height), Image.Resampling.BOX, _crop_box(mask, fit))
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255.0)


def fit_pixels(image: Image.Image, fit: Fit) -> torch.Tensor:
    """An RGB image, scaled and cropped into its bucket: (H, W, 3) float32 in [0, 1]."""
    fitted = image.resize((fit.width, fit.height), Image.Resampling.LANCZOS, _crop_box(image, fit))
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255.0)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """An RGB image from (H, W, 3) in [0, 1]."""
    array = (pixels.detach().cpu().float().clamp(0, 1) * 255.0).round().to(torch.uint8).numpy()
    return Image.fromarray(array, "RGB")


def to_mask_image(mask: torch.Tensor) -> Image.Image:
    """A grey image from (H, W) in [0, 1]."""
    return to_image(mask[..., None].expand(*mask.shape, 3)).getchannel(0)


def _crop_box(image: Image.Image, fit: Fit) -> tuple[float, float, float, float]:
    """The crop of a fit in pixels of the unscaled image: (left, top, right, bottom)."""
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
    except Exception as error:  # Pillow's decoders raise errors of any type
        kinds = ", ".join(FORMATS)
        raise PictureError(
            f"{path.name} is not a picture Pillow can read ({kinds}): remove it or save it again."
        ) from error
    if image.info.get("compression") in RUN_LENGTH_BMP and image.format == "BMP":
        image.close()
        raise PictureError(f"{path.name} is a compressed BMP, which takes too long to decode: save it as PNG.")
    return image


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow supports."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    try:
        yield
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of any type
        raise PictureError(f"{path.name} is damaged or cut short ({error}): copy it again or remove it.") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _to_rgb(image: Image.Image) -> Image.Image:
    """The first frame in 8 bits, composited over white."""
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
    """The alpha channel, or None; a grey picture of 16 bits has none."""
    image = _to_8_bits(image)
    return image.convert("RGBA").getchannel("A") if _has_alpha(image) else None
