"""Picture files as cameras, browsers and other programs write them: how they lie, what is in them besides pixels."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_kiln.training.data import picture_kinds
from lora_kiln.training.data.buckets import Fit
from lora_kiln.training.data.dataset_settings import DatasetSettings
from lora_kiln.training.data.picture_folder import folder_fingerprint, read_folder
from lora_kiln.training.data.picture_kinds import ENDINGS
from lora_kiln.training.data.pictures import (
    PictureError,
    check_picture,
    load_alpha,
    load_mask,
    load_picture,
    picture_facts,
    picture_size,
    thumbnail,
)
from PIL import Image, PngImagePlugin

WIDTH, HEIGHT = 96, 64
FIT = Fit(WIDTH, HEIGHT, WIDTH, HEIGHT, 0, 0)
LOSSY = 16 / 255


def scene() -> Image.Image:
    """Left half red, right half blue, a green bar on top: how it lies can be told."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 30))
    image.paste((30, 30, 200), (WIDTH // 2, 0, WIDTH, HEIGHT))
    image.paste((30, 200, 30), (0, 0, WIDTH, HEIGHT // 4))
    return image


def shows_scene(path: Path) -> bool:
    """Whether all functions agree that the file holds the scene, upright."""
    facts = picture_facts(path)
    assert picture_size(path) == (facts.width, facts.height) == (WIDTH, HEIGHT) == thumbnail(path, WIDTH).size
    assert_scene(load_picture(path, FIT, (WIDTH, HEIGHT)), scene())
    assert_scene(torch.from_numpy(np.asarray(thumbnail(path, WIDTH), dtype=np.float32) / 255), scene())
    assert_scene(load_mask(path, FIT), scene().convert("L"))
    assert load_alpha(path, FIT).min() == 1
    return True


def assert_scene(pixels: torch.Tensor, expected: Image.Image) -> None:
    """Compares them away from edges, which are soft in some kinds."""
    apart = (pixels - torch.from_numpy(np.asarray(expected, dtype=np.float32) / 255)).abs()
    for rows in (slice(4, HEIGHT // 4 - 4), slice(HEIGHT // 4 + 4, HEIGHT)):
        for columns in (slice(WIDTH // 2 - 4), slice(WIDTH // 2 + 4, WIDTH)):
            assert apart[rows, columns].max() <= LOSSY


# ---------------------------------------------------------------- how they lie

STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
CONTAINERS = {
    "plain.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "jpeg.tif": {"compression": "jpeg"},
    "a.jpg": {"quality": 95, "subsampling": 0},
    "progressive.jpg": {"quality": 95, "progressive": True},
    "a.png": {},
    "a.webp": {"lossless": True},
    "a.avif": {"quality": 95},
    "a.heic": {"quality": 95},
    "a.jxl": {"lossless": True},
}


def stored(orientation: int) -> Image.Image:
    turn = STORED[orientation]
    return scene() if turn is None else scene().transpose(turn)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", orientation
    return exif


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_orientation_is_upright_in_every_container(tmp_path: Path, name: str) -> None:
    picture_kinds.readable()
    for orientation in STORED:
        path = tmp_path / f"{orientation}{name}"
        stored(orientation).save(path, exif=exif_of(orientation).tobytes(), **CONTAINERS[name])
        assert shows_scene(path)


def test_a_jpeg_inside_a_jpeg_xl_lies_as_its_exif_says(tmp_path: Path) -> None:
    picture_kinds.readable()
    stored(6).save(tmp_path / "a.jpg", exif=exif_of(6), quality=95, subsampling=0)
    with pytest.warns(UserWarning), Image.open(tmp_path / "a.jpg") as image:
        image.save(tmp_path / "a.jxl")
    assert shows_scene(tmp_path / "a.jxl")


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def test_a_heic_that_tells_its_decoder_nothing_lies_as_its_exif_says(tmp_path: Path) -> None:
    """With a string of bytes pillow-heif writes both, with an object EXIF alone."""
    picture_kinds.readable()
    stored(6).save(tmp_path / "a.heic", exif=exif_of(6), quality=95)
    assert shows_scene(tmp_path / "a.heic")


def test_orientation_in_xmp_counts(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    stored(6).save(tmp_path / "a.png", pnginfo=text)
    stored(6).save(tmp_path / "a.jpg", xmp=XMP, quality=95, subsampling=0)
    stored(6).save(tmp_path / "a.webp", xmp=XMP, lossless=True)
    stored(6).save(tmp_path / "a.tif", tiffinfo={700: XMP})
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        assert shows_scene(tmp_path / name)


def test_orientation_after_the_pixels_and_in_imagemagicks_text_counts(tmp_path: Path) -> None:
    plain = saved("PNG", image=stored(6))
    exif = exif_of(6).tobytes().removeprefix(b"Exif\0\0")
    end = plain.index(b"IEND") - 4
    (tmp_path / "after.png").write_bytes(plain[:end] + chunk(b"eXIf", exif) + plain[end:])
    raw = f"\nexif\n{len(exif):8d}\n{exif.hex()}\n".encode()
    (tmp_path / "raw.png").write_bytes(
        with_chunks(plain, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)))
    )
    for name in ("after.png", "raw.png"):
        assert shows_scene(tmp_path / name)


def test_a_picture_that_is_not_of_its_headers_size_is_said(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    with pytest.raises(PictureError, match=r"a.png is 96 x 64 pixels, and was 64 x 96 before"):
        load_picture(tmp_path / "a.png", FIT, (HEIGHT, WIDTH))


# ---------------------------------------------------------------- what is in them besides pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def saved(kind: str, image: Image.Image | None = None, **options) -> bytes:
    data = io.BytesIO()
    (image or scene()).save(data, kind, **options)
    return data.getvalue()


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """After IHDR."""
    return png[:33] + b"".join(chunks) + png[33:]


def with_segments(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG that begins with these segments."""
    jpeg = saved("JPEG", quality=95, subsampling=0)
    made = b"".join(bytes([0xFF, mark]) + struct.pack(">H", len(data) + 2) + data for mark, data in segments)
    return jpeg[:2] + made + jpeg[2:]


GOOD_EXIF = exif_of(1).tobytes()
LONG = zlib.compress(json.dumps({"n": "x" * 3_000_000}).encode())
PNGS = {
    "a long workflow, packed": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "a long text, packed": chunk(b"zTXt", b"parameters\0\0" + LONG),
    "a text named exif": chunk(b"tEXt", b"exif\0" + str(GOOD_EXIF).encode()),
    "EXIF that is none": chunk(b"eXIf", b"junk"),
    "EXIF, cut": chunk(b"eXIf", GOOD_EXIF[6:20]),
    "a text that is not packed": chunk(b"zTXt", b"key\0\0junk"),
    "a text packed otherwise": chunk(b"zTXt", b"key\0\7junk"),
    "a text of a wrong sum": chunk(b"tEXt", b"key\0text")[:-1] + b"?",
    "a long profile": chunk(b"iCCP", b"name\0\0" + LONG),
    "a profile packed otherwise": chunk(b"iCCP", b"name\0\7junk"),
    "a short gamma": chunk(b"gAMA", b"1"),
    "a broken animation": chunk(b"acTL", b"1") + chunk(b"fcTL", b"2"),
    "raw EXIF that is no hex": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nxyz"),
}
JPEGS = {
    "EXIF that is none": (0xE1, b"Exif\0\0junk that is no TIFF"),
    "EXIF without anything": (0xE1, b"Exif\0\0"),
    "EXIF, twice": (0xE1, b"Exif\0\0" + GOOD_EXIF),
    "EXIF, cut": (0xE1, GOOD_EXIF[:-6]),
    "a short JFIF": (0xE0, b"JFIF\0"),
    "a short Adobe": (0xEE, b"Adobe"),
    "a broken Photoshop": (0xED, b"Photoshop 3.0\x008BIM\4\4\xff"),
    "a profile without its second part": (0xE2, b"ICC_PROFILE\0\1\2part"),
    "a broken list of pictures": (0xE2, b"MPF\0junk"),
    "a comment": (0xFE, b"\xff\xd9\xff\xda"),
}


@pytest.mark.parametrize("more", PNGS.values(), ids=list(PNGS))
def test_what_is_no_pixel_of_a_png_does_not_matter(tmp_path: Path, more: bytes) -> None:
    (tmp_path / "a.png").write_bytes(with_chunks(saved("PNG"), more))
    assert shows_scene(tmp_path / "a.png")


@pytest.mark.parametrize("segment", JPEGS.values(), ids=list(JPEGS))
def test_what_is_no_pixel_of_a_jpeg_does_not_matter(tmp_path: Path, segment: tuple[int, bytes]) -> None:
    (tmp_path / "a.jpg").write_bytes(with_segments(segment))
    assert shows_scene(tmp_path / "a.jpg")


@pytest.mark.parametrize("exif", [b"junk", b"Exif\0\0junk", GOOD_EXIF[:20]])
@pytest.mark.parametrize("kind", ["WEBP", "JXL"])
def test_broken_exif_of_other_kinds_does_not_matter(tmp_path: Path, kind: str, exif: bytes) -> None:
    picture_kinds.readable()
    scene().save(tmp_path / "a.bin", kind, exif=exif, lossless=True)
    assert shows_scene(tmp_path / "a.bin")


@pytest.mark.parametrize("value", ["text", 2**32 - 1, (1, 2, 3)])
@pytest.mark.parametrize("tag", [700, 34665, 34853, 40965, 0x0112, 34675])
def test_broken_tags_of_a_tiff_do_not_matter(tmp_path: Path, tag: int, value: object) -> None:
    for name, compression in (("a.tif", None), ("b.tif", "tiff_lzw")):
        (tmp_path / name).write_bytes(with_tag(saved("TIFF", compression=compression), tag, value))
        assert shows_scene(tmp_path / name)


def with_tag(tiff: bytes, tag: int, value: object) -> bytes:
    """A little-endian TIFF with one more tag: its list of tags is written anew at the end."""
    (start,) = struct.unpack_from("<L", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    entries = [tiff[start + 2 + 12 * n : start + 14 + 12 * n] for n in range(count)]
    if isinstance(value, str):
        entry = struct.pack("<HHL4s", tag, 2, 4, value.encode()[:4])
    elif isinstance(value, tuple):
        entry = struct.pack("<HHLL", tag, 4, len(value), 8)
    else:
        entry = struct.pack("<HHLL", tag, 4, 1, value)
    kept = [each for each in entries if struct.unpack_from("<H", each)[0] != tag]
    tags = sorted([*kept, entry], key=lambda each: struct.unpack_from("<H", each)[0])
    tiff += b"\0" * (len(tiff) % 2)
    return tiff[:4] + struct.pack("<L", len(tiff)) + tiff[8:] + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


def test_pixels_that_are_cut_or_damaged_are_still_said(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        data = saved(kind, noise)
        (tmp_path / "a").write_bytes(data[: len(data) // 2])
        with pytest.raises(PictureError, match="a is damaged or cut short"):
            check_picture(tmp_path / "a")


# ---------------------------------------------------------------- how they are named


def test_files_that_are_jpeg_and_png_by_other_names_are_pictures(tmp_path: Path) -> None:
    for name in ("web.jfif", "old.jpe", "chrome.pjpeg", "two.mpo"):
        (tmp_path / name).write_bytes(saved("JPEG"))
    (tmp_path / "clip.apng").write_bytes(saved("PNG"))
    found = read_folder(tmp_path, DatasetSettings())
    assert len(found.pictures) == 5 and not found.problems


def test_kinds_of_phones_and_browsers_are_read(tmp_path: Path) -> None:
    picture_kinds.readable()
    for kind, name in (("HEIF", "a.heic"), ("JXL", "b.jxl"), ("AVIF", "c.avif"), ("HEIF", "d.jpg")):
        (tmp_path / name).write_bytes(saved(kind, quality=95))
        assert shows_scene(tmp_path / name)
    assert len(read_folder(tmp_path, DatasetSettings()).pictures) == 4


@pytest.mark.parametrize("missing", ["pillow_heif.HeifImagePlugin", "pillow_jxl"])
def test_a_kind_whose_package_is_not_installed_is_said(tmp_path: Path, monkeypatch, missing: str) -> None:
    picture_kinds.readable()
    (tmp_path / "a.heic").write_bytes(saved("HEIF"))
    (tmp_path / "b.jxl").write_bytes(saved("JXL"))
    scene().save(tmp_path / "c.png")
    kinds = [kind for kind in picture_kinds.KINDS if kind.module == missing]
    left = frozenset(Image.OPEN) - set(kinds[0].formats)
    monkeypatch.setattr(picture_kinds, "readable", lambda: left)
    found = read_folder(tmp_path, DatasetSettings())
    assert len(found.pictures) == 2 and len(found.problems) == 1
    assert f"needs {kinds[0].needs} in ComfyUI's Python: install it" in found.problems[0]


def test_a_phones_pair_is_one_picture_where_only_one_can_be_read(tmp_path: Path, monkeypatch) -> None:
    picture_kinds.readable()
    (tmp_path / "IMG_1.HEIC").write_bytes(saved("HEIF"))
    scene().save(tmp_path / "IMG_1.JPG")
    (tmp_path / "IMG_1.txt").write_text("a scene")
    both = read_folder(tmp_path, DatasetSettings())
    assert len(both.pictures) == 2 and not both.problems
    assert both.notes[-1].startswith("IMG_1.HEIC stands beside a picture of the same name")
    left = frozenset(Image.OPEN) - {"HEIF"}
    monkeypatch.setattr(picture_kinds, "readable", lambda: left)
    one = read_folder(tmp_path, DatasetSettings())
    assert [(each.name, each.caption) for each in one.pictures] == [("IMG_1.JPG", "a scene")]
    assert not one.problems and not one.notes


def test_a_picture_of_a_kind_that_is_never_read_is_said(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    (tmp_path / "a.psd").write_bytes(b"the layers of a.png")
    before = folder_fingerprint(tmp_path)
    (tmp_path / "b.CR2").write_bytes(b"raw")
    assert folder_fingerprint(tmp_path) != before
    found = read_folder(tmp_path, DatasetSettings())
    assert [picture.name for picture in found.pictures] == ["a.png"]
    assert found.problems == (
        "b.CR2 is a picture of a kind that is not read: save it as PNG or JPEG, or take it out of the folder.",
    )


def test_every_ending_belongs_to_one_kind() -> None:
    assert len(set(ENDINGS)) == len(ENDINGS) and not set(ENDINGS) & set(picture_kinds.OTHER_ENDINGS)
    assert all(ending == ending.lower() and ending.startswith(".") for ending in ENDINGS)
