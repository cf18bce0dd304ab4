"""Colours of decoded pictures: whatever mode, depth and profile a picture has, 8 bits of sRGB come out.

Large pictures are converted in pieces, so that a conversion takes little more memory than its result.
"""

import io
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

PIECE = 1024
"""pixels on a side"""
LEAST_DIFFERENCE = 2
"""of 255: a profile that changes no colour by more is the same as sRGB"""
LARGEST_VALUES = (1.0, 255.0, 65535.0, 2.0**31 - 1)
"""white in pictures of whole or fractional numbers that say nothing about it; the smallest that fits counts"""
WITHOUT_SHORTCUTS = 0x0100
"""a flag of lcms2.h; its shortcuts know too few dark tones for pictures of 16 bits"""
ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")

Convert = Callable[[Image.Image], Image.Image]


def to_rgb(image: Image.Image, profile: bytes) -> Image.Image:
    """A decoded picture in sRGB, over white.

    Args:
        profile: its ICC profile; b"" or a broken one = its colours are sRGB already.
    """
    to_8_bits, to_srgb = _to_8_bits(image), _to_srgb(image.mode, profile)

    def convert(piece: Image.Image) -> Image.Image:
        small = to_8_bits(piece)
        rgb = small.convert("RGB") if to_srgb is None else to_srgb(piece, small)
        if not _has_alpha(piece):
            return rgb
        rgba = small.convert("RGBA")
        if to_srgb is not None:
            rgba = Image.merge("RGBA", (*rgb.split(), rgba.getchannel("A")))
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")

    is_rgb = image.mode == "RGB" and to_srgb is None and not _has_alpha(image)
    return image if is_rgb else _in_pieces(image, "RGB", convert)


def to_mask(image: Image.Image) -> Image.Image:
    """A decoded picture as a mask: its values in grey, without regard to a profile; black where it is transparent."""
    to_8_bits = _to_8_bits(image)

    def convert(piece: Image.Image) -> Image.Image:
        small = to_8_bits(piece)
        grey = small.getchannel(0) if small.mode == "LAB" else small.convert("L")
        if not _has_alpha(piece):
            return grey
        return Image.composite(grey, Image.new("L", grey.size, 0), small.convert("RGBA").getchannel("A"))

    return _in_pieces(image, "L", convert)


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque each pixel of a decoded picture is, 255 = wholly; None where none is transparent by its mode."""
    if not _has_alpha(image):
        return None
    return _in_pieces(image, "L", lambda piece: piece.convert("RGBA").getchannel("A"))


def reading_of(image: Image.Image, profile: bytes) -> str:
    """What sets a picture's colours apart from those of a plain 8-bit sRGB file: "" = nothing does.

    Pictures of which it is not empty were read otherwise by earlier versions.
    """
    if _to_srgb(image.mode, profile) is not None:
        return f"{image.mode} to sRGB"
    return f"{image.mode} of {_white(image):g}" if image.mode in ("I", "F") else ""


def _in_pieces(image: Image.Image, mode: str, convert: Convert) -> Image.Image:
    out = Image.new(mode, image.size)
    for box in _pieces(image.size):
        out.paste(convert(image.crop(box)), box[:2])
    return out


def _pieces(size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    width, height = size
    for top in range(0, height, PIECE):
        for left in range(0, width, PIECE):
            yield left, top, min(left + PIECE, width), min(top + PIECE, height)


def _has_alpha(image: Image.Image) -> bool:
    """Whether its mode has one; a grey picture of 16 bits has none."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return False
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _to_8_bits(image: Image.Image) -> Convert:
    """A function that brings pieces of this picture to a mode of 8 bits a channel."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return lambda piece: piece
    white = _white(image)

    def convert(piece: Image.Image) -> Image.Image:
        values = np.nan_to_num(np.asarray(piece, dtype=np.float64), posinf=white)
        return Image.fromarray(np.clip(values / white * 255.0, 0, 255).round().astype(np.uint8))

    return convert


def _white(image: Image.Image) -> float:
    """The value of white in a picture of numbers of more than 8 bits.

    Fractions may exceed white where the light does: the smallest white counts that at most half of the pixels above
    black exceed.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return 65535.0
    lit, above = 0, dict.fromkeys(LARGEST_VALUES, 0)
    for box in _pieces(image.size):
        values = np.asarray(image.crop(box))
        lit += int((values > 0).sum())
        for white in LARGEST_VALUES:
            above[white] += int((values > white).sum())
    allowed = lit // 2 if image.mode == "F" else 0
    whites = LARGEST_VALUES if image.mode == "F" else LARGEST_VALUES[1:]
    return next((white for white in whites if above[white] <= allowed), LARGEST_VALUES[-1])


def _to_srgb(mode: str, profile: bytes) -> Callable[[Image.Image, Image.Image], Image.Image] | None:
    """A function from (piece, the same in 8 bits) to sRGB; None where the colours are sRGB already."""
    if mode in ("CMYK", "LAB"):
        made = _transform(profile, mode)
        return made and (lambda piece, small: made.apply(small))
    is_deep = mode.startswith("I;16")
    is_grey = mode in ("1", "L", "LA", "La", "I", "F") or is_deep
    if is_deep and (deep := _transform(profile, "I;16")):
        return lambda piece, small: deep.apply(piece.convert("I;16"))
    if is_grey and (grey := _transform(profile, "L")):
        return lambda piece, small: grey.apply(small.convert("L"))
    coloured = _transform(profile, "RGB")
    return coloured and (lambda piece, small: coloured.apply(small.convert("RGB")))


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours in a mode to sRGB.

    None where the profile is broken or of other colours than the mode's, and where it is sRGB but for rounding.
    """
    try:
        if mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            about: Any = source.profile
            wanted = {"L": "GRAY", "I;16": "GRAY", "CMYK": "CMYK"}.get(mode, "RGB ")
            if about.xcolor_space != wanted or about.device_class not in ("scnr", "mntr", "prtr", "spac"):
                return None
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        flags: Any = WITHOUT_SHORTCUTS if mode == "I;16" else 0
        transform = ImageCms.ImageCmsTransform(source, target, mode, "RGB", flags=flags)
        probe = _probe(mode)
        changed = transform.apply(probe)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None
    if mode in ("CMYK", "LAB", "I;16"):
        return transform
    plain = np.asarray(probe.convert("RGB"), dtype=np.int16)
    return transform if np.abs(np.asarray(changed) - plain).max() > LEAST_DIFFERENCE else None


def _probe(mode: str) -> Image.Image:
    """A small picture with colours from all over a mode's range."""
    if mode == "LAB":
        return Image.new(mode, (1, 1))
    if mode == "I;16":
        return Image.fromarray(np.arange(256, dtype=np.uint16)[None] * 257)
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    return Image.fromarray(np.ascontiguousarray(colours)).convert(mode)
