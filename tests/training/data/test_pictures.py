"""Pictures scaled and cut into their buckets."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_kiln.training.data.buckets import Fit, bucket_sizes, fit_picture
from lora_kiln.training.data.pictures import (
    PictureError,
    check_picture,
    fit_mask,
    fit_pixels,
    load_alpha,
    load_mask,
    load_picture,
    picture_facts,
    picture_size,
    same_aspect,
    to_image,
)
from PIL import Image

BUCKETS = bucket_sizes(64, 16, 32, 128)


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    red = np.tile(np.linspace(0, 255, width), (height, 1))
    green = np.tile(np.linspace(0, 255, height)[:, None], (1, width))
    return Image.fromarray(np.stack([red, green, np.zeros_like(red)], -1).round().astype(np.uint8))


def test_a_picture_of_its_buckets_size_comes_as_it_is() -> None:
    image = gradient(64, 64)
    pixels = fit_pixels(image, Fit(64, 64, 64, 64, 0, 0))
    assert torch.equal(pixels, torch.from_numpy(np.asarray(image, dtype=np.float32) / 255))


def test_the_middle_is_kept_and_the_sides_are_cut() -> None:
    pixels = fit_pixels(gradient(200, 100), fit_picture(200, 100, [(64, 64)]))
    assert pixels.shape == (64, 64, 3)
    assert pixels[32, 0, 0] == pytest.approx(0.25, abs=0.02) and pixels[32, -1, 0] == pytest.approx(0.75, abs=0.02)
    assert pixels[0, 32, 1] < 0.02 and pixels[-1, 32, 1] > 0.98


@pytest.mark.parametrize("size", [(900, 600), (40, 30), (64, 2000)])
def test_a_large_jpeg_is_decoded_small_without_a_visible_difference(tmp_path: Path, size) -> None:
    """JPEGs may be decoded at a fraction of their size."""
    gradient(*size).save(tmp_path / "a.jpg", quality=95)
    fit = fit_picture(*size, BUCKETS)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = fit_pixels(image.convert("RGB"), fit)
    torch.testing.assert_close(load_picture(tmp_path / "a.jpg", fit), whole, atol=0.03, rtol=0)


@pytest.mark.parametrize("size", [(20_000, 16), (16, 20_000)])
def test_a_long_strip_needs_no_memory_for_what_is_cut_off(size, at_most_400_mb_more) -> None:
    """Scaled as a whole, the strip would have 640,000 x 512 pixels: 1 GB. Only a bucket of it is kept."""
    fit = fit_picture(*size, bucket_sizes(512, 64, 512, 512))
    assert fit_pixels(Image.new("RGB", size), fit).shape == (512, 512, 3)


@pytest.fixture
def at_most_400_mb_more() -> Iterator[None]:
    """Lets the process grow by 400 MB and no more; what asks for more gets a MemoryError (Linux)."""
    import resource

    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 400 * 2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_pixels_and_images_are_each_others_inverse() -> None:
    pixels = torch.from_numpy(np.asarray(gradient(32, 48), dtype=np.float32) / 255)
    back = torch.from_numpy(np.asarray(to_image(pixels), dtype=np.float32) / 255)
    assert torch.equal(pixels, back)


def test_pixels_out_of_range_are_clamped() -> None:
    assert to_image(torch.tensor([[[-1.0, 0.5, 2.0]]])).getpixel((0, 0)) == (0, 128, 255)


def test_the_size_is_read_without_decoding(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    gradient(300, 200).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    assert picture_size(path) == (300, 200)
    with pytest.raises(PictureError, match="cut.jpg is damaged or cut short"):
        check_picture(path)


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_a_picture_with_too_short_a_side_is_refused(tmp_path: Path, size) -> None:
    gradient(*size).save(tmp_path / "a.png")
    with pytest.raises(PictureError, match=f"{size[0]} x {size[1]} pixels: at least 16"):
        picture_size(tmp_path / "a.png")


# ---------------------------------------------------------------- masks


def left_half_white(width: int, height: int, mode: str = "L") -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask.convert(mode)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P", "RGBA"])
@pytest.mark.parametrize("size", [(200, 100), (100, 50), (400, 200)])
def test_a_mask_of_any_size_is_cut_as_its_picture_is(tmp_path: Path, mode: str, size) -> None:
    """The picture is 200 x 100 with its left half marked; of the middle square, the left half stays marked."""
    fit = fit_picture(200, 100, [(64, 64)])
    left_half_white(*size, mode).save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png", fit)
    assert mask.shape == (64, 64) and mask.dtype == torch.float32
    assert mask[:, :31].min() == 1 and mask[:, 33:].max() == 0


def test_what_is_transparent_in_a_mask_file_is_left_out(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (0, 0, 64, 32))
    image.save(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png", Fit(64, 64, 64, 64, 0, 0))
    assert mask[:32].min() == 1 and mask[32:].max() == 0


def test_the_alpha_channel_is_how_opaque_a_picture_is(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (10, 20, 30, 51))
    image.paste((10, 20, 30, 255), (0, 0, 16, 64))
    image.save(tmp_path / "a.png")
    alpha = load_alpha(tmp_path / "a.png", Fit(64, 64, 64, 64, 0, 0))
    assert alpha[:, :16].min() == 1
    torch.testing.assert_close(alpha[:, 16:], torch.full((64, 48), 0.2))


def test_a_mask_is_scaled_by_area() -> None:
    values = np.random.RandomState(0).randint(0, 256, (64, 64), dtype=np.uint8)
    mask = fit_mask(Image.fromarray(values), Fit(16, 16, 16, 16, 0, 0))
    expected = torch.from_numpy(values.reshape(16, 4, 16, 4).mean((1, 3)) / 255).float()
    torch.testing.assert_close(mask, expected, atol=1 / 255, rtol=0)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((100, 50), (200, 100), True),
        ((1000, 667), (500, 333), True),
        ((100, 50), (50, 100), False),
        ((100, 100), (100, 95), False),
    ],
)
def test_aspect_ratios_are_compared_but_for_rounding(first, second, same: bool) -> None:
    assert same_aspect(first, second) is same_aspect(second, first) is same


@pytest.mark.parametrize(("alpha", "is_transparent"), [(255, False), (254, True), (0, True)])
def test_facts_of_a_picture(tmp_path: Path, alpha: int, is_transparent: bool) -> None:
    Image.new("RGBA", (40, 30), (1, 2, 3, alpha)).save(tmp_path / "a.png")
    facts = picture_facts(tmp_path / "a.png")
    assert (facts.width, facts.height, facts.is_transparent) == (40, 30, is_transparent)
    assert facts.digest == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
