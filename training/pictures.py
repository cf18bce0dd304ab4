"""Picture files in: any kind that Pillow reads, as upright RGB."""

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .buckets import Fit

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
SMALLEST_SIDE = 16
"""pixels; less holds nothing to learn"""
LARGEST_AREA = 170_000_000
"""pixels; beyond this one picture would take gigabytes to decode"""


class PictureError(ValueError):
    """A picture that cannot be used; the message names it and says what to do."""


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) as shown, read from the header only.

    Raises:
        PictureError: no picture, too small, too large.
    """
    with _opened(path) as image:
        width, height = image.size
        if _orientation(image, path) in (5, 6, 7, 8):
            width, height = height, width
    if min(width, height) < SMALLEST_SIDE:
        raise PictureError(
            f"{path.name} is {width} x {height} pixels: at least {SMALLEST_SIDE} a side are needed. Remove it."
        )
    if width * height > LARGEST_AREA:
        raise PictureError(
            f"{path.name} is {width} x {height} pixels: more than {LARGEST_AREA // 1_000_000} million. Scale it down."
        )
    return width, height


def check_picture(path: Path) -> None:
    """Decodes the whole file once.

    Raises:
        PictureError: truncated or damaged.
    """
    with _opened(path) as image:
        _decode(image, path)


def load_picture(path: Path, fit: Fit) -> torch.Tensor:
    """The picture in its bucket: (H, W, 3) float32 in [0, 1]."""
    with _opened(path) as image:
        image.draft("RGB", (fit.scaled_width, fit.scaled_height))
        upright = ImageOps.exif_transpose(_decode(image, path))
    return fit_pixels(_to_rgb(upright), fit)


def fit_pixels(image: Image.Image, fit: Fit) -> torch.Tensor:
    """An RGB image scaled and cut into its bucket: (H, W, 3) float32 in [0, 1]."""
    x, y = image.width / fit.scaled_width, image.height / fit.scaled_height
    box = (fit.left * x, fit.top * y, (fit.left + fit.width) * x, (fit.top + fit.height) * y)
    cut = image.resize((fit.width, fit.height), Image.Resampling.LANCZOS, box)
    return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255.0)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """An RGB image from (H, W, 3) in [0, 1]."""
    array = (pixels.detach().cpu().float().clamp(0, 1) * 255.0).round().to(torch.uint8).numpy()
    return Image.fromarray(array, "RGB")


def _opened(path: Path) -> Image.Image:
    if path.stat().st_size == 0:
        raise PictureError(f"{path.name} is an empty file: remove it or copy it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path.name} has too many pixels to decode: scale it down.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"{path.name} is not a picture Pillow can read: remove it or save it again.") from error


def _orientation(image: Image.Image, path: Path) -> int:
    """How the picture is turned, as EXIF says it; a PNG may be decoded for it."""
    try:
        return image.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PictureError:
    return PictureError(f"{path.name} is damaged or cut short ({error}): copy it again or remove it.")


def _decode(image: Image.Image, path: Path) -> Image.Image:
    try:
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """First frame, 8 bits, transparency over white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I;16") or values.max(initial=0.0) > 255.0 else 255.0
        image = Image.fromarray(np.clip(values / top * 255.0, 0, 255).round().astype(np.uint8), "L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
