"""Reading picture and mask files, of the kinds in `picture_kinds`, as upright RGB or grey."""

import hashlib
import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from .buckets import Fit
from .colours import alpha_of, reading_of, to_mask, to_rgb
from .picture_headers import HEIGHT, WIDTH, heif_is_turned, jxl_size, tiff_tags, webp_size
from .picture_kinds import ENDINGS as ENDINGS
from .picture_kinds import KINDS, MOST_BYTES, PictureKind, kind_of
from .picture_kinds import LARGEST_AREA as LARGEST_AREA
from .picture_parts import ORIENTATION, Metadata, Parts, PixelParts, jpeg_parts, png_parts

SMALLEST_SIDE = 16
"""pixels"""
RUN_LENGTH_BMP = (1, 2)
"""compressions of BMP that Pillow decodes in Python: a few bytes can block the server for half a minute"""
MOST_SCANNED = 2_000_000_000
"""pixels times scans of a JPEG; decoding takes some seconds"""
SCAN_COST = 4096
"""pixels that take as long as beginning a scan"""
SAME_ASPECT = 0.02
"""relative difference of two aspect ratios that counts as rounding to pixels"""
BLACKEST = 2
"""of 255: a mask without brighter pixels is black all over"""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""orientation of a file -> how its pixels become upright"""


class PictureError(ValueError):
    """A picture that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class PictureFacts:
    """Facts about a picture file that was decoded without error."""

    width: int
    """pixels, upright"""
    height: int
    is_transparent: bool
    """some of its pixels are"""
    digest: str
    """SHA-256 of the file"""
    is_clear: bool = False
    """all of its pixels are wholly transparent"""
    is_black: bool = False
    """as a mask it leaves nothing to learn"""
    reading: str = ""
    """how its colours are read, where earlier versions read them otherwise; see `colours.reading_of`"""


@dataclass
class OpenPicture:
    """A picture file of which the header was read."""

    image: Image.Image
    metadata: Metadata
    orientation: int
    """of its pixels in the file, 1 to 8 as in EXIF"""
    size: tuple[int, int]
    """(width, height), upright"""

    def load(self, small: tuple[int, int] | None = None) -> Image.Image:
        """Its decoded pixels, as they lie in the file; a TIFF's are upright, as Pillow turns them itself.

        Args:
            small: (width, height) that suffice: a JPEG is then decoded at a fraction of its size.
        """
        expected = self.size
        if small is not None and self.image.format == "JPEG":
            self.image.draft("RGB", small)
            expected = self._upright_size()
        self.image.load()
        if self.image.format == "TIFF":
            self.orientation = 1
        if self._upright_size() != expected:
            raise ValueError(
                f"its header says {expected[0]} x {expected[1]} pixels, "
                f"but it holds {self.image.size[0]} x {self.image.size[1]}"
            )
        return self.image

    def upright(self, image: Image.Image) -> Image.Image:
        """A picture that lies as the decoded pixels do, turned."""
        turn = TURNS.get(self.orientation)
        return image if turn is None else image.transpose(turn)

    def _upright_size(self) -> tuple[int, int]:
        width, height = self.image.size
        return (height, width) if self.orientation > 4 else (width, height)


def picture_facts(path: Path) -> PictureFacts:
    """Decodes a file and digests it.

    Raises:
        PictureError: the file cannot be used.
    """
    with _opened(path) as picture:
        image = picture.load(small=(1, 1))
        alpha = alpha_of(image)
        lowest, highest = (255, 255) if alpha is None else _extremes(alpha)
        return PictureFacts(
            *picture.size,
            is_transparent=lowest < 255,
            digest=_digest(path),
            is_clear=highest == 0,
            is_black=_extremes(to_mask(image))[1] <= BLACKEST,
            reading=reading_of(image, picture.metadata.profile),
        )


def _extremes(grey: Image.Image) -> tuple[int, int]:
    low, high = np.asarray(grey).min(), np.asarray(grey).max()
    return int(low), int(high)


def same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether two (width, height) have the same aspect ratio within SAME_ASPECT."""
    return abs(math.log(first[0] * second[1] / (first[1] * second[0]))) <= SAME_ASPECT


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) when upright, from the file's header alone.

    Raises:
        PictureError: not a picture, too small or too large.
    """
    with _opened(path) as picture:
        return picture.size


def check_picture(path: Path) -> None:
    """Decodes a file.

    Raises:
        PictureError: the file is truncated or damaged.
    """
    with _opened(path) as picture:
        picture.load(small=(1, 1))


def load_picture(path: Path, fit: Fit, size: tuple[int, int] | None = None) -> torch.Tensor:
    """A picture, scaled and cropped into its bucket: (H, W, 3) float32 in [0, 1], sRGB.

    Args:
        size: (width, height) of which `fit` was made; None = not known.

    Raises:
        PictureError: the file cannot be used, or is of another size.
    """
    with _opened(path) as picture:
        if size is not None and size != picture.size:
            raise PictureError(
                f"{path.name} is {picture.size[0]} x {picture.size[1]} pixels, and was {size[0]} x {size[1]} before"
            )
        image = picture.load(small=(fit.scaled_width, fit.scaled_height))
        rgb = picture.upright(to_rgb(image, picture.metadata.profile))
    return fit_pixels(rgb, fit)


def thumbnail(path: Path, side: int) -> Image.Image:
    """A picture, upright, scaled down to at most `side` pixels on its longer side, RGB.

    Raises:
        PictureError: the file cannot be used.
    """
    with _opened(path) as picture:
        image = picture.load(small=(side, side))
        small = to_rgb(image, picture.metadata.profile)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture.upright(small)


def load_mask(path: Path, fit: Fit) -> torch.Tensor:
    """A mask file, scaled and cropped as its picture, white = 1, transparent = 0: (H, W) float32 in [0, 1]."""
    with _opened(path) as picture:
        mask = picture.upright(to_mask(picture.load()))
    return fit_mask(mask, fit)


def load_alpha(path: Path, fit: Fit) -> torch.Tensor:
    """A picture's alpha channel, scaled and cropped as the picture: (H, W) float32 in [0, 1]; 1 without one."""
    with _opened(path) as picture:
        image = picture.load()
        alpha = alpha_of(image)
        upright = picture.upright(Image.new("L", image.size, 255) if alpha is None else alpha)
    return fit_mask(upright, fit)


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


@contextmanager
def _opened(path: Path) -> Iterator[OpenPicture]:
    """Opens a picture file and reads its header.

    Raises:
        PictureError: the file cannot be used: not a picture, too small, too large or damaged; also from inside the
            `with` block, where decoding fails.
    """
    with path.open("rb") as file:
        head = file.read(64)
        if not head:
            raise PictureError(f"{path.name} is an empty file: remove it or copy it again.")
        kind = kind_of(head)
        if kind is None:
            names = ", ".join(kind.name for kind in KINDS)
            raise PictureError(f"{path.name} is not a picture Pillow can read ({names}): remove it or save it again.")
        if not kind.is_readable:
            raise PictureError(
                f"{path.name} is a picture of the kind {kind.name}, which needs {kind.needs} in ComfyUI's Python: "
                "install it and restart, or save the picture as PNG or JPEG."
            )
        try:
            parts = _parts(path, file, kind)
            with _pillow_image(path, file, kind, parts) as image:
                picture = _with_header(image, parts.metadata, parts.is_turned)
                _check_size(path.name, picture.size, kind, parts)
                yield picture
        except PictureError:
            raise
        except Exception as error:  # Pillow's decoders raise errors of any type
            raise PictureError(f"{path.name} is damaged or cut short ({error}): copy it again or remove it.") from error


def _parts(path: Path, file: BinaryIO, kind: PictureKind) -> PixelParts:
    """The parts of a file that make its pixels, where they can be told from the rest; no parts = all of it.

    Raises:
        PictureError: opening it would take too much memory.
    """
    if kind.name == "PNG":
        return png_parts(file)
    if kind.name == "JPEG":
        return jpeg_parts(file)
    parts = PixelParts()
    if kind.name == "TIFF":
        tags = tiff_tags(file)
        if problem := tags.problem(path.stat().st_size):
            raise PictureError(f"{path.name} {problem}: save it again, as PNG.")
        parts.bytes_per_pixel = tags.bytes_per_pixel
    elif kind.name in ("WebP", "JPEG XL"):  # decoders that take memory as soon as they are opened
        size, parts.is_turned = (webp_size if kind.name == "WebP" else jxl_size)(file)
        _check_area(path.name, size, kind.most_pixels)
    elif kind.name == "HEIC":
        parts.is_turned = heif_is_turned(file)
    return parts


def _pillow_image(path: Path, file: BinaryIO, kind: PictureKind, parts: PixelParts) -> Image.Image:
    source = io.BufferedReader(Parts(file, parts.ranges), 2**16) if parts.ranges else path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(source, formats=kind.formats)
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path.name} has too many pixels to decode: scale it down.") from error
    if image.info.get("compression") in RUN_LENGTH_BMP and image.format == "BMP":
        image.close()
        raise PictureError(f"{path.name} is a compressed BMP, which takes too long to decode: save it as PNG.")
    return image


def _with_header(image: Image.Image, metadata: Metadata, is_turned: bool) -> OpenPicture:
    """Adds the facts of a picture's header.

    Args:
        metadata: what was found in the file; where it is empty, Pillow tells.
        is_turned: the decoder turns the picture, whatever its EXIF data say; but for a JPEG inside a JPEG XL.
    """
    told = {name: value for name, value in image.info.items() if isinstance(value, bytes)}
    if not isinstance(image.info.get("xmp", b""), bytes):
        del image.info["xmp"]  # Pillow would search it as bytes
    metadata.profile = metadata.profile or told.get("icc_profile", b"")
    metadata.exif = metadata.exif or told.get("exif", b"")
    metadata.xmp = metadata.xmp or told.get("xmp", b"")
    size, orientation = image.size, image.info.get("original_orientation") or metadata.orientation()
    if is_turned and not getattr(image, "jpeg", False):
        orientation = 1
    if isinstance(image, TiffImageFile):  # some versions of Pillow tell the size as it will be when upright
        size, found = (image.tag_v2[WIDTH], image.tag_v2[HEIGHT]), image.getexif().get(ORIENTATION)
        orientation = found if found in TURNS else 1
    width, height = size
    return OpenPicture(image, metadata, orientation, (height, width) if orientation > 4 else (width, height))


def _check_size(name: str, size: tuple[int, int], kind: PictureKind, parts: PixelParts) -> None:
    area = size[0] * size[1]
    _check_area(name, size, min(kind.most_pixels, MOST_BYTES // max(1, parts.bytes_per_pixel)))
    if (area + SCAN_COST) * parts.scans > MOST_SCANNED:
        raise PictureError(f"{name} is a JPEG of {parts.scans} scans, which takes too long to decode: save it again.")
    if min(size) < SMALLEST_SIDE:
        raise PictureError(
            f"{name} is {size[0]} x {size[1]} pixels: at least {SMALLEST_SIDE} a side are needed. Remove it."
        )


def _check_area(name: str, size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        raise PictureError(
            f"{name} is {size[0]} x {size[1]} pixels: more than {most // 1_000_000} million. Scale it down."
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
