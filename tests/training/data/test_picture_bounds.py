"""Small picture files that claim, or unpack to, very much: decoding and converting stay within bounds."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lora_kiln.training.data import picture_kinds
from lora_kiln.training.data.buckets import Fit
from lora_kiln.training.data.pictures import (
    PictureError,
    load_alpha,
    load_mask,
    load_picture,
    picture_facts,
    picture_size,
    thumbnail,
)
from PIL import Image

SIDE = 3500
FIT = Fit(64, 64, 64, 64, 0, 0)


@pytest.fixture
def at_most_150_mb_more() -> Iterator[None]:
    """Lets the process grow by 150 MB and no more; what asks for more gets a MemoryError (Linux)."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 150 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of 12 million pixels in modes that take a conversion."""
    folder = tmp_path_factory.mktemp("large")
    Image.new("I;16", (SIDE, SIDE), 40_000).save(folder / "grey16.png", compress_level=1)
    Image.new("F", (SIDE, SIDE), 0.5).save(folder / "fractions.tif", compression="tiff_adobe_deflate")
    Image.new("RGBA", (SIDE, SIDE), (200, 30, 30, 128)).save(folder / "clear.png", compress_level=1)
    return folder


@pytest.mark.parametrize("name", ["grey16.png", "fractions.tif", "clear.png"])
def test_a_conversion_takes_little_more_than_its_result(large: Path, name: str, at_most_150_mb_more) -> None:
    assert picture_facts(large / name).width == SIDE
    assert 0 < load_picture(large / name, FIT).max() <= 1
    if name == "clear.png":
        assert thumbnail(large / name, 64).size == (64, 64) and load_alpha(large / name, FIT).max() < 1
        assert load_mask(large / name, FIT).max() < 1


# ---------------------------------------------------------------- what a header claims


def tiff(tags: dict[int, list[int]], more: bytes = bytes(32 * 32)) -> bytes:
    """A grey TIFF of 32 x 32 with these tags besides; a list of one number stands in its tag, others behind them."""
    tags = {256: [32], 257: [32], 258: [8], 259: [1], 262: [1], 277: [1], 278: [32], 279: [1024], 273: [8], **tags}
    data, entries = b"II*\0" + struct.pack("<L", 8 + len(more)) + more, b""
    end = len(data) + 6 + 12 * len(tags)
    behind = b""
    for tag, numbers in sorted(tags.items()):
        place = numbers[0] if len(numbers) == 1 else end + len(behind)
        entries += struct.pack("<HHLL", tag, 4, len(numbers), place)
        behind += struct.pack(f"<{len(numbers)}L", *numbers) if len(numbers) > 1 else b""
    return data + struct.pack("<H", len(tags)) + entries + bytes(4) + behind


def test_a_tile_that_is_far_larger_than_its_tiff_is_refused(tmp_path: Path, at_most_150_mb_more) -> None:
    tiled = {322: [46_000], 323: [46_000], 324: [8], 325: [1024], 259: [8]}
    (tmp_path / "a.tif").write_bytes(tiff(tiled, zlib.compress(bytes(1024)).ljust(1024, b"\0")))
    with pytest.raises(PictureError, match="a.tif is 32 x 32 pixels in tiles of 2,116 million: save it again"):
        picture_facts(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes(tiff({}))
    assert picture_size(tmp_path / "b.tif") == (32, 32)


def test_tags_that_each_claim_the_whole_file_are_refused(tmp_path: Path, at_most_150_mb_more) -> None:
    whole = bytearray(tiff(dict.fromkeys(range(50_000, 53_000), [0]), bytes(2**20)))
    (start,) = struct.unpack_from("<L", whole, 4)
    (count,) = struct.unpack_from("<H", whole, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", whole, at)[0] >= 50_000:
            struct.pack_into("<HLL", whole, at + 2, 1, 2**20, 8)
    (tmp_path / "a.tif").write_bytes(whole)
    with pytest.raises(PictureError, match="a.tif has more tags than data"):
        picture_facts(tmp_path / "a.tif")


def test_a_tiff_in_very_many_pieces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff({273: [8] * 300_000}))
    with pytest.raises(PictureError, match="a.tif lies in 300,000 pieces"):
        picture_facts(tmp_path / "a.tif")


def test_the_canvas_of_a_webp_is_refused_before_its_decoder_takes_it(tmp_path: Path, at_most_150_mb_more) -> None:
    frame = io.BytesIO()
    Image.new("RGB", (16, 16)).save(frame, "WEBP", lossless=True)
    body = b"VP8X" + struct.pack("<L", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2 + frame.getvalue()[12:]
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<L", len(body) + 4) + b"WEBP" + body)
    with pytest.raises(PictureError, match="a.webp is 16383 x 16383 pixels: more than 93 million"):
        picture_size(tmp_path / "a.webp")


def bits(*numbers: tuple[int, int]) -> bytes:
    """(number, bits of it), the lowest bit first."""
    value = place = 0
    for number, count in numbers:
        value, place = value | number << place, place + count
    return value.to_bytes(64, "little")


@pytest.mark.parametrize("is_boxed", [False, True])
def test_a_jpeg_xl_is_refused_by_its_header(tmp_path: Path, is_boxed: bool) -> None:
    """Its reader decodes as soon as it opens a file."""
    stream = b"\xff\x0a" + bits((0, 1), (3, 2), (99_999, 30), (1, 3))
    box = b"\0\0\0\x0cJXL \r\n\x87\n" + struct.pack(">L4s", 8 + len(stream), b"jxlc") + stream
    (tmp_path / "a.jxl").write_bytes(box if is_boxed else stream)
    with pytest.raises(PictureError, match="a.jxl is 100000 x 100000 pixels: more than 93 million"):
        picture_facts(tmp_path / "a.jxl")


@pytest.mark.parametrize("size", [(17, 16), (96, 64), (64, 96), (256, 256), (640, 512), (1000, 400), (300, 2000)])
def test_the_header_of_a_jpeg_xl_is_read_as_its_decoder_reads_it(tmp_path: Path, size: tuple[int, int]) -> None:
    from lora_kiln.training.data.picture_headers import jxl_size

    picture_kinds.readable()
    for name, options in (("a.jxl", {"effort": 1}), ("b.jxl", {"effort": 1, "use_container": True})):
        Image.new("RGB", size).save(tmp_path / name, **options)
        with (tmp_path / name).open("rb") as file:
            assert jxl_size(file) == (size, False)


# ---------------------------------------------------------------- what takes long


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path: Path) -> None:
    made = io.BytesIO()
    Image.new("L", (2000, 2000), 128).save(made, "JPEG", progressive=True)
    jpeg = made.getvalue()
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    (tmp_path / "many.jpg").write_bytes(jpeg[:-2] + last * 600 + b"\xff\xd9")
    with pytest.raises(PictureError, match="many.jpg is a JPEG of 606 scans, which takes too long"):
        picture_size(tmp_path / "many.jpg")
    (tmp_path / "some.jpg").write_bytes(jpeg[:-2] + last * 20 + b"\xff\xd9" + b"\xff\xda" * 1000)
    assert picture_size(tmp_path / "some.jpg") == (2000, 2000)


def test_texts_that_unpack_to_very_much_are_passed_over(tmp_path: Path, at_most_150_mb_more) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(60)) + packer.flush()
    made = io.BytesIO()
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(made, "PNG")
    bombs = [chunk(b"zTXt", key + b"\0\0" + bomb) for key in (b"key", b"Raw profile type exif")]
    bombs += [chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb), chunk(b"iCCP", b"name\0\0" + bomb)]
    (tmp_path / "a.png").write_bytes(made.getvalue()[:33] + b"".join(bombs) + made.getvalue()[33:])
    assert picture_facts(tmp_path / "a.png").width == 64
