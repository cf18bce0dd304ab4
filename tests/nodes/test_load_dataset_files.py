"""The picture and caption files that Load Dataset reads, and those that it leaves out with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_kiln.training.basics.errors import InputError
from PIL import Image

from load_dataset_node import BLUE, RED, SIZE, assert_color, dataset_of, load, names, noise_picture, pixels_of, save

# ---------------------------------------------------------------- files that cannot be used


def problems_beside_a_good_one(pictures: Path) -> str:
    """Loads the folder with one good picture more; only that one comes through. Gives what was said."""
    save(pictures, "good.png")
    dataset = dataset_of()
    assert names(dataset) == ["good.png"]
    return "\n".join(dataset.problems)


FORMATS = ["png", "jpg", "webp", "bmp", "tif", "gif", "avif"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_file_is_left_out_with_a_reason(pictures: Path, ending: str, share: float) -> None:
    path = pictures / f"cut.{ending}"
    noise_picture().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    said = problems_beside_a_good_one(pictures)
    assert "cut." in said and ("copy it again" in said or "not a picture" in said)


def test_a_zero_byte_file_is_left_out_with_a_reason(pictures: Path) -> None:
    (pictures / "zero.png").write_bytes(b"")
    assert "zero.png is an empty file" in problems_beside_a_good_one(pictures)


def test_a_picture_with_a_damaged_chunk_is_left_out_with_a_reason(pictures: Path) -> None:
    path = pictures / "hurt.png"
    noise_picture().save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    data[at + 200 : at + 220] = bytes(20)
    path.write_bytes(data)
    assert "hurt.png" in problems_beside_a_good_one(pictures)


def test_a_damaged_avif_is_left_out_with_a_reason(pictures: Path) -> None:
    """Pillow has a kind of error of its own for these."""
    path = pictures / "hurt.avif"
    noise_picture().save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat")
    data[at + 4 : at + 44] = bytes(40)
    path.write_bytes(data)
    assert "hurt.avif" in problems_beside_a_good_one(pictures)


def test_a_1_pixel_picture_is_left_out_with_a_reason(pictures: Path) -> None:
    save(pictures, "dot.png", size=(1, 1))
    assert "dot.png is 1 x 1 pixels: at least" in problems_beside_a_good_one(pictures)


def test_a_1_pixel_image_from_the_graph_is_refused(folders: Path) -> None:
    with pytest.raises(InputError, match="1 x 1 pixels"):
        load("none", images=[torch.zeros(1, 1, 1, 3)])


@pytest.mark.parametrize("size", [(30_000, 64), (64, 30_000)])
def test_a_30000_pixel_long_picture_is_cut_to_the_longest_bucket(pictures: Path, size) -> None:
    save(pictures, size=size)
    pixels = pixels_of(dataset_of())
    assert max(pixels.shape[:2]) == 128 and min(pixels.shape[:2]) == 32
    assert_color(pixels, RED)


def one_bit_png(side: int) -> bytes:
    """A real, whole PNG of side x side black pixels; compressed as it is made, so that it costs no memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, packed = zlib.compressobj(1), io.BytesIO()
    row = bytes(1 + (side + 7) // 8)
    for _ in range(side):
        packed.write(packer.compress(row))
    packed.write(packer.flush())
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed.getvalue()) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [16_000, 30_000])
def test_a_picture_too_large_to_decode_is_left_out_with_a_reason(pictures: Path, side: int) -> None:
    (pictures / "huge.png").write_bytes(one_bit_png(side))
    said = problems_beside_a_good_one(pictures)
    assert "huge.png" in said and "cale it down" in said


def test_a_caption_in_another_encoding_is_named(pictures: Path) -> None:
    save(pictures, "cafe.png")
    (pictures / "cafe.txt").write_bytes("un café".encode("latin-1"))
    assert "cafe.txt is not UTF-8 text (byte 6)" in problems_beside_a_good_one(pictures)


def test_metadata_in_another_encoding_is_named(pictures: Path) -> None:
    save(pictures)
    (pictures / "metadata.jsonl").write_bytes('{"file_name": "a.png", "text": "café"}'.encode("latin-1"))
    assert any("metadata.jsonl is not UTF-8" in problem for problem in dataset_of().problems)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_caption_in_unicode_is_read(pictures: Path, encoding: str) -> None:
    save(pictures)
    (pictures / "a.txt").write_text("un café, 猫\n", encoding=encoding)
    assert dataset_of().pictures[0].caption == "un café, 猫"


def test_bad_pictures_stop_the_node_where_that_is_asked(pictures: Path) -> None:
    save(pictures, "good.png")
    (pictures / "zero.png").write_bytes(b"")
    with pytest.raises(InputError, match="zero.png is an empty file"):
        load(bad_pictures="stop")


@pytest.mark.parametrize("name", ["raw.CR2", "phone.heic", "new.jxl", "layers.psd"])
def test_a_picture_that_is_not_read_stops_the_node_too(pictures: Path, name: str) -> None:
    save(pictures, "good.png")
    (pictures / name).write_bytes(b"as a camera writes it")
    assert len(dataset_of().pictures) == 1
    with pytest.raises(InputError, match=name):
        load(bad_pictures="stop")


def test_files_beside_the_pictures_stop_nothing_and_are_said(pictures: Path) -> None:
    save(pictures, "good.png")
    (pictures / "readme.txt").write_text("about these pictures")
    dataset = load(bad_pictures="stop").result[0]
    assert names(dataset) == ["good.png"] and not dataset.problems
    assert dataset.notes == ("readme.txt belongs to no picture: name a caption as its picture.",)


def test_what_was_left_out_stands_in_the_dataset_once_a_file(pictures: Path) -> None:
    save(pictures, "good.png")
    for name in ("x.png", "y.png"):
        (pictures / name).write_bytes(b"nothing")
    assert len(dataset_of().problems) == 2


# ---------------------------------------------------------------- files of unusual kinds, which can be used


def test_cmyk(pictures: Path) -> None:
    Image.new("CMYK", SIZE, (0, 255, 255, 0)).save(pictures / "a.jpg", quality=95)
    red = pixels_of(dataset_of()).mean((0, 1))
    assert red[0] > 0.8 and red[1] < 0.2 and red[2] < 0.2


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey(pictures: Path, ending: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (64, 1))).save(pictures / f"a.{ending}")
    row = pixels_of(dataset_of())[32, :, 0]
    torch.testing.assert_close(row, torch.linspace(0, 1, 64), atol=0.03, rtol=0)


def test_16_bit_grey_that_is_nearly_black_stays_so(pictures: Path) -> None:
    Image.fromarray(np.full((64, 64), 200, dtype=np.uint16)).save(pictures / "a.png")
    assert_color(pixels_of(dataset_of()), (1, 1, 1))


def test_16_bit_color(pictures: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">HHH", *(value * 257 for value in RED)) * SIZE[0]
    header = struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * SIZE[1])) + chunk(b"IEND", b"")
    (pictures / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert_color(pixels_of(dataset_of()), RED)


def test_one_bit(pictures: Path) -> None:
    Image.new("1", SIZE, 1).save(pictures / "a.png")
    assert_color(pixels_of(dataset_of()), (255, 255, 255))


def half_transparent_palette(path: Path) -> None:
    image = Image.new("P", SIZE, 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (32, 0, 64, 64))
    image.save(path, transparency=1)


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_palette_with_alpha_lies_on_white(pictures: Path, ending: str) -> None:
    half_transparent_palette(pictures / f"a.{ending}")
    pixels = pixels_of(dataset_of())
    assert_color(pixels[:, :28], RED)
    assert_color(pixels[:, 36:], (255, 255, 255))


def test_half_transparent_pixels_are_mixed_with_white(pictures: Path) -> None:
    Image.new("RGBA", SIZE, (*RED, 128)).save(pictures / "a.png")
    assert_color(pixels_of(dataset_of()), tuple(round((value + 255) / 2) for value in RED))


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_of_an_animation_the_first_frame_is_taken(pictures: Path, ending: str) -> None:
    frames = [Image.new("RGB", SIZE, color) for color in (RED, BLUE, (0, 0, 0))]
    frames[0].save(pictures / f"a.{ending}", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert len(dataset_of().pictures) == 1
    assert_color(pixels_of(dataset_of()), RED)


TRANSPOSED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> how the upright picture is turned to be stored"""


@pytest.mark.parametrize("orientation", TRANSPOSED)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_an_exif_rotated_picture_stands_upright(pictures: Path, ending: str, orientation: int) -> None:
    upright = Image.new("RGB", (80, 48), RED)
    upright.paste(BLUE, (0, 0, 20, 20))
    turn = TRANSPOSED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright if turn is None else upright.transpose(turn)
    stored.save(pictures / f"a.{ending}", exif=exif, quality=95)
    dataset = dataset_of()
    pixels = pixels_of(dataset)
    assert (dataset.pictures[0].width, dataset.pictures[0].height) == (80, 48)
    assert_color(pixels[2:14, 2:14], BLUE, 0.05)
    assert_color(pixels[26:, 26:], RED, 0.05)


def test_an_unknown_exif_orientation_turns_nothing(pictures: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    save(pictures, "a.jpg", size=(80, 48), exif=exif)
    assert (dataset_of().pictures[0].width, dataset_of().pictures[0].height) == (80, 48)


def test_a_lab_tiff_is_used_or_left_out_with_a_reason(pictures: Path) -> None:
    Image.new("LAB", SIZE, (128, 128, 128)).save(pictures / "lab.tif")
    save(pictures, "good.png")
    dataset = dataset_of()
    assert "lab.tif" in names(dataset) or any("lab.tif" in problem for problem in dataset.problems)


def test_a_picture_by_another_ending_is_read(pictures: Path) -> None:
    Image.new("RGB", SIZE, RED).save(pictures / "a.jpg", format="PNG")
    assert_color(pixels_of(dataset_of()), RED)


def test_endings_in_capitals_are_read(pictures: Path) -> None:
    save(pictures, "A.PNG")
    assert names(dataset_of()) == ["A.PNG"]


def test_hidden_files_are_left_alone(pictures: Path) -> None:
    save(pictures, "a.png")
    (pictures / "._a.png").write_bytes(b"what macOS leaves behind")
    assert names(dataset_of()) == ["a.png"] and not dataset_of().problems
