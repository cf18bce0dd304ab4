"""What picture files claim of themselves, looked at before a decoder believes it and takes memory."""

import re
import struct
from dataclasses import dataclass, field
from typing import BinaryIO

MOST_STRIPS = 200_000
"""strips or tiles of a TIFF"""
SMALL_TILE = 2**20
"""pixels of a tile that any TIFF may have"""
TIFF_TYPES = {
    **{1: "B", 2: "s", 3: "H", 4: "L", 5: "8s", 6: "b", 7: "s", 8: "h", 9: "l", 10: "8s", 11: "f", 12: "d", 13: "L"},
    **{16: "Q", 17: "q", 18: "Q"},
}
"""type of a tag -> format of a value"""
SUBFOLDERS = (34665, 34853, 40965)
"""tags that lead to further tags: EXIF, GPS, interoperability"""
WIDTH, HEIGHT, BITS, STRIPS, SAMPLES, TILE_WIDTH, TILE_HEIGHT, TILES = 256, 257, 258, 273, 277, 322, 323, 324
HEIF_HEADER = 2**20
"""bytes in which a HEIC's properties lie"""
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""of width and height"""


@dataclass
class TiffTags:
    """The tags of a TIFF's first picture."""

    first: dict[int, int] = field(default_factory=dict)
    """tag -> its first value, of those that are whole numbers"""
    counts: dict[int, int] = field(default_factory=dict)
    """tag -> number of its values"""
    size: int = 0
    """bytes of all values that lie in the file"""

    def problem(self, file_size: int) -> str:
        """What a decoder should not be led into by these tags; "" if nothing."""
        width, height = self.first.get(WIDTH, 0), self.first.get(HEIGHT, 0)
        tile = self.first.get(TILE_WIDTH, 0) * self.first.get(TILE_HEIGHT, 0)
        strips = max(self.counts.get(STRIPS, 0), self.counts.get(TILES, 0))
        if self.size > 2 * file_size:
            return "has more tags than data"
        if tile > max(SMALL_TILE, 4 * width * height):
            return f"is {width} x {height} pixels in tiles of {tile / 1e6:,.0f} million"
        if strips > MOST_STRIPS:
            return f"lies in {strips:,} pieces; at most {MOST_STRIPS:,} are read"
        return ""

    @property
    def bytes_per_pixel(self) -> int:
        """Most memory that decoding takes: the whole picture as it lies in the file, and as it is decoded."""
        return 4 + -(-self.first.get(BITS, 8) * max(1, self.first.get(SAMPLES, 1)) // 8)


def tiff_tags(file: BinaryIO) -> TiffTags:
    """The tags of a TIFF's first picture and of its EXIF data, as far as they can be read."""
    found = TiffTags()
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = 43 in head[2:4]
    waiting = [struct.unpack_from(f"{order}Q" if is_big else f"{order}L", head.ljust(16, b"\0"), 8 if is_big else 4)[0]]
    seen: set[int] = set()
    while waiting and len(seen) < 8:
        start = waiting.pop()
        if start not in seen and start < size:
            seen.add(start)
            _read_tags(file, start, order, is_big, found, is_first=len(seen) == 1)
            waiting += [found.first[tag] for tag in SUBFOLDERS if tag in found.first]
    return found


def _read_tags(file: BinaryIO, start: int, order: str, is_big: bool, found: TiffTags, *, is_first: bool) -> None:
    entry = struct.Struct(f"{order}HHQ8s" if is_big else f"{order}HHL4s")
    counted = struct.Struct(f"{order}Q" if is_big else f"{order}H")
    file.seek(0, 2)
    size = file.tell()
    file.seek(start)
    head = file.read(counted.size)
    number = counted.unpack(head)[0] if len(head) == counted.size else 0
    entries = file.read(min(number, 65_536) * entry.size)
    for tag, kind, count, value in entry.iter_unpack(entries[: len(entries) // entry.size * entry.size]):
        if kind not in TIFF_TYPES:
            continue
        form = order + TIFF_TYPES[kind]
        length, room = struct.calcsize(form), len(value)
        if length * count > room:
            (at,) = struct.unpack(f"{order}Q" if is_big else f"{order}L", value)
            found.size += min(length * count, max(0, size - at))
            value = _read_at(file, at, length)
        if len(value) < length:
            continue
        (first,) = struct.unpack_from(form, value)
        if isinstance(first, int) and (is_first or tag in SUBFOLDERS):
            found.first.setdefault(tag, first)
            found.counts.setdefault(tag, count)


def _read_at(file: BinaryIO, at: int, length: int) -> bytes:
    if at >= 2**63:
        return b""
    file.seek(at)
    return file.read(length)


def webp_size(file: BinaryIO) -> tuple[tuple[int, int], bool]:
    """((width, height), False) of an extended WebP's canvas; (0, 0) for other WebP files, of which Pillow tells it."""
    file.seek(0)
    head = file.read(30)
    if head[12:16] != b"VP8X" or len(head) < 30:
        return (0, 0), False
    return (int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1), False


def jxl_size(file: BinaryIO) -> tuple[tuple[int, int], bool]:
    """((width, height), whether the decoder turns it) of a JPEG XL: ISO/IEC 18181-1, SizeHeader and ImageMetadata.

    Raises:
        ValueError: they cannot be read.
    """
    file.seek(0)
    head = file.read(64)
    stream = head if head.startswith(b"\xff\x0a") else _jxl_stream(file)
    if not stream.startswith(b"\xff\x0a") or len(stream) < 16:
        raise ValueError("no codestream")
    bits = _Bits(stream[2:])
    is_small = bits.take(1)

    def side() -> int:
        return (bits.take(5) + 1) * 8 if is_small else bits.take((9, 13, 18, 30)[bits.take(2)]) + 1

    height = side()
    ratio = bits.take(3)
    width = height * JXL_RATIOS[ratio - 1][0] // JXL_RATIOS[ratio - 1][1] if ratio else side()
    has_extra = not bits.take(1) and bits.take(1)
    return (width, height), bool(has_extra and bits.take(3))


def heif_is_turned(file: BinaryIO) -> bool:
    """Whether a HEIC tells its decoder to turn or mirror it; its EXIF data then do not count."""
    file.seek(0)
    return re.search(rb"irot|imir", file.read(HEIF_HEADER)) is not None


class _Bits:
    """Numbers in a stream of bits, the lowest bit first."""

    def __init__(self, data: bytes):
        self._rest = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._rest & ((1 << count) - 1)
        self._rest >>= count
        return value


def _jxl_stream(file: BinaryIO) -> bytes:
    """The first bytes of the codestream in a container."""
    start = 0
    for _ in range(1000):
        head = _read_at(file, start, 16)
        if len(head) < 16:
            break
        length, kind, begin = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:
            length, begin = int.from_bytes(head[8:16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            return _read_at(file, start + begin + (4 if kind == b"jxlp" else 0), 64)
        if length < begin:
            break
        start += length
    return b""
