"""Pictures of every mode, depth and profile, read as sRGB."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from lora_kiln.training.data.buckets import Fit
from lora_kiln.training.data.pictures import load_mask, load_picture, picture_facts, thumbnail
from PIL import Image, ImageCms

from profiles import ADOBE, P3, SRGB, of_grey, of_inks, profile

WIDTH, HEIGHT = 96, 64
FIT = Fit(WIDTH, HEIGHT, WIDTH, HEIGHT, 0, 0)
NEAR = 3 / 255
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 140, 170), (250, 250, 250), (40, 40, 40)]


def scene() -> Image.Image:
    """Six fields of one colour each."""
    fields = np.array(COLOURS, np.uint8).reshape(2, 3, 3)
    return Image.fromarray(fields.repeat(HEIGHT // 2, 0).repeat(WIDTH // 3, 1))


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255)


def is_near(path: Path, expected: Image.Image, near: float = NEAR) -> bool:
    return bool((load_picture(path, FIT) - pixels_of(expected)).abs().max() <= near)


# ---------------------------------------------------------------- profiles


def from_srgb(image: Image.Image, target: bytes) -> Image.Image:
    """The numbers that a camera with this profile writes for these colours."""
    source, wanted = (ImageCms.ImageCmsProfile(io.BytesIO(each)) for each in (SRGB, target))
    converted = ImageCms.profileToProfile(image, source, wanted, outputMode="RGB")
    assert converted is not None
    return converted


KINDS = {
    "png": {},
    "jpg": {"quality": 100, "subsampling": 0},
    "webp": {"lossless": True},
    "tif": {},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("ending", KINDS)
@pytest.mark.parametrize("wide", [ADOBE, P3], ids=["Adobe", "P3"])
def test_colours_are_those_that_the_profile_means(tmp_path: Path, wide: bytes, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    soft = Image.blend(scene(), Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128)), 0.4)
    from_srgb(soft, wide).save(path, icc_profile=wide, **KINDS[ending])
    assert is_near(path, soft, NEAR if ending not in ("jpg", "avif") else 5 / 255)  # these round on their own
    assert not is_near_without_profile(path, soft)


def is_near_without_profile(path: Path, expected: Image.Image) -> bool:
    with Image.open(path) as image:
        return bool((pixels_of(image) - pixels_of(expected)).abs().max() <= 5 / 255)


def test_a_saturated_colour_of_adobe_rgb(tmp_path: Path) -> None:
    from_srgb(scene(), ADOBE).save(tmp_path / "a.png", icc_profile=ADOBE)
    assert is_near(tmp_path / "a.png", scene())
    shown = np.asarray(thumbnail(tmp_path / "a.png", WIDTH), dtype=int)
    assert np.abs(shown - np.asarray(scene(), dtype=int)).max() <= 3


def test_a_profile_counts_where_a_picture_is_transparent(tmp_path: Path) -> None:
    image = from_srgb(scene(), ADOBE).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, WIDTH, 8))
    image.save(tmp_path / "a.png", icc_profile=ADOBE)
    expected = scene()
    expected.paste((255, 255, 255), (0, 0, WIDTH, 8))
    assert is_near(tmp_path / "a.png", expected)


def test_a_profile_counts_for_a_palette(tmp_path: Path) -> None:
    from_srgb(scene(), ADOBE).quantize(6).save(tmp_path / "a.png", icc_profile=ADOBE)
    assert is_near(tmp_path / "a.png", scene())


@pytest.mark.parametrize("gamma", [1.0, 1.8])
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_of_another_gamma(tmp_path: Path, bits: int, gamma: float) -> None:
    values = np.linspace(0.1, 1, WIDTH)[None].repeat(HEIGHT, 0)
    top = 2**bits - 1
    Image.fromarray((values * top).round().astype(f"uint{bits}")).save(tmp_path / "a.png", icc_profile=of_grey(gamma))
    light = values**gamma
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(load_picture(tmp_path / "a.png", FIT).numpy() - expected[..., None]).max() <= NEAR


def test_dark_tones_of_linear_16_bits_are_kept(tmp_path: Path) -> None:
    Image.fromarray(np.full((HEIGHT, WIDTH), 300, np.uint16)).save(tmp_path / "a.png", icc_profile=of_grey(1.0))
    assert load_picture(tmp_path / "a.png", FIT).mean() * 255 == pytest.approx(14.5, abs=1.5)


def test_inks_are_read_by_their_profile(tmp_path: Path) -> None:
    ink = Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0))
    ink.paste((0, 128, 128, 64), (0, 0, WIDTH, HEIGHT // 2))
    for name, inks in (("with", of_inks()), ("without", None)):
        ink.save(tmp_path / f"{name}.tif", icc_profile=inks) if inks else ink.save(tmp_path / f"{name}.tif")
    light = np.array([1.0, 127 / 255, 127 / 255]) ** 2 * (191 / 255) ** 2
    expected = torch.from_numpy(1.055 * light ** (1 / 2.4) - 0.055).float()
    torch.testing.assert_close(load_picture(tmp_path / "with.tif", FIT)[0, 0], expected, atol=0.03, rtol=0)
    plain = torch.tensor([191, 95, 95]) / 255
    torch.testing.assert_close(load_picture(tmp_path / "without.tif", FIT)[0, 0], plain, atol=NEAR, rtol=0)


BROKEN = {
    "no profile": b"no profile at all",
    "cut": ADOBE[:200],
    "empty": b"",
    "of grey": of_grey(1.0),
    "of inks": of_inks(),
    "linked": profile(b"RGB ", {}, b"link", b"RGB "),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_a_profile_that_cannot_be_used_counts_as_none(tmp_path: Path, broken: bytes) -> None:
    scene().save(tmp_path / "a.png", icc_profile=broken or None)
    scene().save(tmp_path / "a.tif", icc_profile=broken or None)
    for name in ("a.png", "a.tif"):
        assert torch.equal(load_picture(tmp_path / name, FIT), pixels_of(scene()))
        assert picture_facts(tmp_path / name).reading == ""


def test_srgb_and_pictures_without_a_profile_are_as_they_are(tmp_path: Path) -> None:
    scene().save(tmp_path / "a.png")
    scene().save(tmp_path / "b.png", icc_profile=SRGB)
    for name in ("a.png", "b.png"):
        assert torch.equal(load_picture(tmp_path / name, FIT), pixels_of(scene()))
        assert picture_facts(tmp_path / name).reading == ""


def test_a_mask_is_its_values_whatever_its_profile(tmp_path: Path) -> None:
    Image.new("L", (WIDTH, HEIGHT), 128).save(tmp_path / "m.png", icc_profile=of_grey(1.0))
    assert load_mask(tmp_path / "m.png", FIT).mean() * 255 == pytest.approx(128)


# ---------------------------------------------------------------- modes and depths


def test_lab_is_read(tmp_path: Path) -> None:
    grey = Image.new("RGB", (WIDTH, HEIGHT), (160, 120, 110))
    profiles = (ImageCms.ImageCmsProfile(ImageCms.createProfile(name)) for name in ("sRGB", "LAB"))
    lab = ImageCms.profileToProfile(grey, *profiles, outputMode="LAB")
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    assert is_near(tmp_path / "a.tif", grey)


RAMP = np.linspace(0, 1, WIDTH, dtype=np.float32)[None].repeat(HEIGHT, 0)


@pytest.mark.parametrize(
    "values",
    [
        RAMP,
        RAMP * 255,
        RAMP * 65535,
        (RAMP * 65535).astype(np.int32),
        (RAMP.astype(float) * (2**31 - 1)).astype(np.int32),
    ],
    ids=["to 1", "to 255", "to 65535", "whole to 65535", "whole to 2^31"],
)
def test_the_white_of_numbers_is_found(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    expected = torch.from_numpy(RAMP)[..., None].expand(-1, -1, 3)
    torch.testing.assert_close(load_picture(tmp_path / "a.tif", FIT), expected, atol=0.005, rtol=0)
    torch.testing.assert_close(load_mask(tmp_path / "a.tif", FIT), expected[..., 0], atol=0.005, rtol=0)


def test_some_light_above_white_does_not_make_the_rest_black(tmp_path: Path) -> None:
    values = RAMP.copy()
    values[:, -5:], values[0, 0], values[1, 0] = 7.5, np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "a.tif")
    read = load_picture(tmp_path / "a.tif", FIT)
    torch.testing.assert_close(read[2:, 1:-5, 0], torch.from_numpy(RAMP)[2:, 1:-5], atol=0.005, rtol=0)
    assert read[5, -1, 0] == 1 and read[0, 0, 0] == 0 and read[1, 0, 0] == 1
