"""The parts of picture files that make their pixels: what else a file holds neither stops nor costs anything."""

import io
import re
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import BinaryIO

MOST_METADATA = 4 * 2**20
"""bytes of a profile or of metadata, unpacked; larger ones count as none"""
PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
PNG_XMP, PNG_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"
"""keywords of texts that may tell the orientation"""
JPEG_MARK = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)
"""the start of a segment; escaped bytes, restarts and padding are none"""
JPEG_END, JPEG_SCAN, JPEG_COMMENT, JPEG_APPS = 0xD9, 0xDA, 0xFE, range(0xE0, 0xF0)
JPEG_PROGRESSIVE, JPEG_SCANNED_BYTES = (0xC2, 0xC6, 0xCA, 0xCE), 12
"""frames of which the decoder holds all coefficients, and the memory per pixel that it then takes"""
ORIENTATION = 0x0112
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
UNSIGNED = {1: "B", 3: "H", 4: "L"}
"""types of whole numbers in EXIF"""


@dataclass
class Metadata:
    """What a picture file says about its pixels."""

    exif: bytes = b""
    xmp: bytes = b""
    profile: bytes = b""
    """ICC profile"""

    def orientation(self) -> int:
        """How the picture is turned, 1 to 8 as in EXIF; 1 = upright, also where it cannot be read."""
        found = _exif_orientation(self.exif)
        if found is None and (match := XMP_ORIENTATION.search(self.xmp)):
            found = int(match.group(1))
        return found if found is not None and 1 <= found <= 8 else 1


class Parts(io.RawIOBase):
    """Parts of a file, read as if they were a whole one.

    Args:
        ranges: (start, end) of each part.
    """

    def __init__(self, file: BinaryIO, ranges: list[tuple[int, int]]):
        self._file = file
        self._ranges = ranges
        self._ends = list(accumulate(end - start for start, end in ranges))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1] if self._ends else 0}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[override]
        part = bisect_right(self._ends, self._at)
        if part == len(self._ranges):
            return 0
        left = self._ends[part] - self._at
        self._file.seek(self._ranges[part][1] - left)
        data = self._file.read(min(len(buffer), left))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass
class PixelParts:
    """The parts of a file that make its pixels, and what it says about them."""

    ranges: list[tuple[int, int]] = field(default_factory=list)
    """(start, end) of each part"""
    metadata: Metadata = field(default_factory=Metadata)
    scans: int = 1
    """times that a decoder goes over the picture"""
    bytes_per_pixel: int = 0
    """most memory that decoding takes, where the kind of file alone does not tell"""
    is_turned: bool = False
    """its decoder turns the picture upright"""

    def keep(self, start: int, end: int) -> None:
        """Adds a part that follows those before."""
        if self.ranges and self.ranges[-1][1] == start:
            start = self.ranges.pop()[0]
        self.ranges.append((start, end))


def png_parts(file: BinaryIO) -> PixelParts:
    """A PNG without texts, animation and other chunks that make no pixels of its picture."""
    found, texts = PixelParts([(0, 8)]), dict[bytes, bytes]()
    start = 8
    while True:
        file.seek(start)
        head = file.read(8)
        if len(head) < 8:
            return found  # cut short: the decoder will say so
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = start + 12 + length
        if kind in PNG_PIXELS:
            found.keep(start, end)
        elif kind in (b"eXIf", b"iCCP", b"iTXt", b"tEXt", b"zTXt") and length <= MOST_METADATA:
            data = file.read(length)
            if kind == b"eXIf":
                found.metadata.exif = data
            elif kind == b"iCCP":
                found.metadata.profile = _unpacked(data.partition(b"\0")[2][1:])
            else:
                texts.update(_png_text(kind, data))  # of two, the last one counts
        if kind == b"IEND":
            break
        start = end
    found.metadata.xmp = texts.get(PNG_XMP, b"")
    found.metadata.exif = found.metadata.exif or _raw_profile(texts.get(PNG_EXIF, b""))
    return found


def jpeg_parts(file: BinaryIO) -> PixelParts:
    """The first picture of a JPEG without comments and application segments, but for those that tell its colours."""
    file.seek(0)
    data = file.read()
    found, profiles, at, is_in_scans = PixelParts([(0, 2)], scans=0), {}, 2, False
    while mark := JPEG_MARK.search(data, at):
        kind = mark.group(1)[0]
        start, at = mark.start(), mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")
        if kind == JPEG_END or at < mark.end() + 2:
            break
        body = data[mark.end() + 2 : at]
        found.scans += kind == JPEG_SCAN
        if is_in_scans:
            continue  # kept as a whole
        if kind == JPEG_SCAN:
            is_in_scans = True
            found.keep(start, len(data))
        elif kind == JPEG_COMMENT or (kind in JPEG_APPS and not _tells_jpeg_colours(kind, body)):
            _read_jpeg_segment(kind, body, found.metadata, profiles)
        else:
            found.bytes_per_pixel = JPEG_SCANNED_BYTES if kind in JPEG_PROGRESSIVE else found.bytes_per_pixel
            found.keep(start, at)
    if profiles and sorted(profiles) == list(range(1, len(profiles) + 1)):
        found.metadata.profile = b"".join(profiles[number] for number in sorted(profiles))
    return found


def _tells_jpeg_colours(kind: int, body: bytes) -> bool:
    """Whether a segment decides how the decoder reads the colours, by the lengths that libjpeg asks for."""
    return (kind == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14) or (
        kind == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
    )


def _read_jpeg_segment(kind: int, body: bytes, metadata: Metadata, profiles: dict[int, bytes]) -> None:
    """Takes in EXIF, XMP, or a numbered part of a profile."""
    xmp, profile = b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
    if kind == 0xE1 and body.startswith(b"Exif\0\0"):
        metadata.exif = metadata.exif or body
    elif kind == 0xE1 and body.startswith(xmp):
        metadata.xmp = body[len(xmp) :]
    elif kind == 0xE2 and body.startswith(profile) and len(body) > len(profile) + 2:
        profiles[body[len(profile)]] = body[len(profile) + 2 :]


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in EXIF data; None where it holds none or cannot be read."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}L", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == ORIENTATION and kind in UNSIGNED:
                return struct.unpack_from(f"{order}{UNSIGNED[kind]}", exif, entry + 8)[0]
    except struct.error:
        pass
    return None


def _png_text(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """{keyword: text} of a text chunk that may tell the orientation; {} of others."""
    keyword, _, rest = data.partition(b"\0")
    if keyword not in (PNG_XMP, PNG_EXIF):
        return {}
    if kind == b"tEXt":
        return {keyword: rest}
    if kind == b"zTXt":
        return {keyword: _unpacked(rest[1:])}
    text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # after language and translated keyword
    return {keyword: _unpacked(text) if rest[:1] == b"\1" else text}


def _unpacked(data: bytes) -> bytes:
    """What deflated data unpack to; b"" where they are damaged, cut or unpack to more than MOST_METADATA."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, MOST_METADATA)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof else b""


def _raw_profile(text: bytes) -> bytes:
    """EXIF data as ImageMagick writes them into a text: a name and a length, each on a line, and hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        return b""
