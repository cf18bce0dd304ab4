"""The kinds of picture files: how they are named, how they begin, and what reads them."""

import importlib
import re
from dataclasses import dataclass
from functools import cache

from PIL import Image

LARGEST_AREA = 170_000_000
"""pixels of a picture of any kind"""
MOST_BYTES = 1_500_000_000
"""memory that decoding and converting a picture may take"""


@dataclass(frozen=True)
class PictureKind:
    """A kind of picture files."""

    name: str
    endings: tuple[str, ...]
    """of the files' names, lower case"""
    formats: tuple[str, ...]
    """Pillow's names of it"""
    begins: str
    """a regular expression on the first bytes of such a file"""
    bytes_per_pixel: int = 8
    """most memory that decoding and converting take; measured"""
    module: str = ""
    """a package's module whose import teaches Pillow this kind; "" = Pillow knows it by itself"""
    needs: str = "a newer Pillow"
    """what is to be installed where it cannot be read"""

    @property
    def most_pixels(self) -> int:
        """Pixels of the largest picture that is read."""
        return min(LARGEST_AREA, MOST_BYTES // self.bytes_per_pixel)

    @property
    def is_readable(self) -> bool:
        """Whether something that reads it is installed."""
        return any(name in readable() for name in self.formats)


KINDS = (
    PictureKind("PNG", (".png", ".apng"), ("PNG",), r"\x89PNG\r\n\x1a\n"),
    PictureKind(
        "JPEG", (".jpg", ".jpeg", ".jfif", ".jpe", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo"), ("JPEG",), r"\xff\xd8\xff"
    ),
    PictureKind("WebP", (".webp",), ("WEBP",), r"RIFF....WEBP", bytes_per_pixel=16),
    PictureKind("BMP", (".bmp", ".dib"), ("BMP", "DIB"), r"BM|[\x0c(48@l|]\0\0\0"),
    PictureKind("TIFF", (".tif", ".tiff"), ("TIFF",), r"(II|MM)(\0[*+]|[*+]\0)"),
    PictureKind("GIF", (".gif",), ("GIF",), r"GIF8[79]a"),
    PictureKind(
        "AVIF", (".avif",), ("AVIF",), r"....ftyp(avi[fs]|.{4}(.{4})*?avi[fs])", 16, needs="Pillow 11.3 or later"
    ),
    PictureKind(
        "HEIC", (".heic", ".heif", ".hif"), ("HEIF",), r"....ftyp(he[iv][cxms]|mi[fa][123f]|msf1)", 12,
        "pillow_heif.HeifImagePlugin", "the package pillow-heif",
    ),
    PictureKind(
        "JPEG XL", (".jxl",), ("JXL",), r"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", 16,
        "pillow_jxl", "the package pillow-jxl-plugin",
    ),
)  # fmt: skip
"""The kinds that are read. Pillow's readers of all others stay shut: some start programs or open further files."""
ENDINGS = tuple(ending for kind in KINDS for ending in kind.endings)
PHOTOS = (".heic", ".heif", ".hif")
"""endings of pictures that phones store beside a JPEG of the same"""
OTHER_ENDINGS = (
    *(".psd", ".psb", ".xcf", ".kra", ".clip", ".svg", ".tga", ".ico", ".exr", ".hdr", ".dds", ".qoi", ".pcx"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".jxr", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".raw"),
)
"""endings of pictures that are not read; without a readable picture of the same name beside it, such a file is named"""


def kind_of(head: bytes) -> PictureKind | None:
    """The kind of the file with these first bytes (64 are enough); its name does not count."""
    return next((kind for kind in KINDS if re.match(kind.begins.encode("latin-1"), head, re.DOTALL)), None)


@cache
def readable() -> frozenset[str]:
    """Pillow's names of the formats that are installed."""
    Image.init()
    for kind in KINDS:
        if kind.module:
            try:
                importlib.import_module(kind.module)
            except (ImportError, OSError, AttributeError):  # not installed, or made for another Pillow
                continue
    return frozenset(Image.OPEN)
