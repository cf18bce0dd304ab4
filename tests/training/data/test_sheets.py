"""Labelled sheets: every picture is on them, whole, and every label fits."""

import pytest
import torch
from lora_kiln.training.data.sheets import DIMMED, GROUND, contact_sheet, dimmed, strength_grid, wrap
from PIL import ImageFont

COLORS = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.0, 1.0, 1.0)]
SIDE = 48
LONG = "a very long caption " * 8
TEXTS = ["", "short", "two words", LONG, "x" * 100, "line\nbreaks\n\nand\ttabs", "猫とEmoji 🐈", " , "]


def picture(color, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    return torch.tensor(color).expand(height, width, 3)


def area(sheet: torch.Tensor, color) -> int:
    """How many pixels of the sheet have just that color."""
    return int((sheet[0] == torch.tensor(color)).all(-1).sum())


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_contact_sheet_shows_every_picture_whole(count: int) -> None:
    sheet = contact_sheet([(picture(color), "heading", "caption") for color in COLORS[:count]], columns=2, side=SIDE)
    assert [area(sheet, color) for color in COLORS[:count]] == [SIDE * SIDE] * count


def test_a_contact_sheet_scales_pictures_down_in_shape() -> None:
    sheet = contact_sheet([(picture(COLORS[0], 200, 100), "", "")], columns=1, side=SIDE)
    assert area(sheet, COLORS[0]) == SIDE * SIDE // 2


@pytest.mark.parametrize("text", TEXTS)
def test_a_contact_sheet_has_its_size_whatever_the_caption(text: str) -> None:
    plain = contact_sheet([(picture(COLORS[0]), "", "")], columns=1, side=SIDE)
    assert contact_sheet([(picture(COLORS[0]), "heading", text)], columns=1, side=SIDE).shape == plain.shape


def test_a_caption_is_written() -> None:
    plain, written = (contact_sheet([(picture(COLORS[0]), "", text)], columns=1, side=SIDE) for text in ("", "words"))
    ground = [channel / 255.0 for channel in GROUND]
    assert area(plain, ground) > area(written, ground)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (4, 1)])
def test_a_strength_grid_shows_every_picture_whole(rows: int, columns: int) -> None:
    cells = [(f"prompt {n}", [picture(COLORS[n])] * columns) for n in range(rows)]
    sheet = strength_grid(cells, ["0.5"] * columns)
    assert [area(sheet, COLORS[n]) for n in range(rows)] == [SIDE * SIDE * columns] * rows


def test_a_strength_grid_has_its_pictures_in_order() -> None:
    sheet = strength_grid([("prompt", [picture(color) for color in COLORS[:3]])], ["0", "0.5", "1"])[0]
    places = [(sheet == torch.tensor(color)).all(-1).nonzero()[:, 1].float().mean() for color in COLORS[:3]]
    assert places == sorted(places)


@pytest.mark.parametrize("text", TEXTS)
def test_a_strength_grid_has_its_size_whatever_the_prompt(text: str) -> None:
    plain = strength_grid([("", [picture(COLORS[0])])], ["1"])
    assert strength_grid([(text, [picture(COLORS[0])])], ["1"]).shape == plain.shape


@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize("text", TEXTS)
def test_wrapped_text_fits(text: str, lines: int) -> None:
    font = ImageFont.load_default(11)
    wrapped = wrap(text, font, 100, lines)
    assert len(wrapped) <= lines
    assert all(font.getlength(line) <= 100 for line in wrapped)


def test_wrapped_text_has_all_its_words_where_there_is_room() -> None:
    text = "one two three four five six seven"
    assert " ".join(wrap(text, ImageFont.load_default(11), 60, 20)) == text


def test_text_that_does_not_fit_ends_in_an_ellipsis() -> None:
    assert wrap(LONG, ImageFont.load_default(11), 100, 2)[-1].endswith("…")


def test_only_what_a_mask_leaves_out_is_dimmed() -> None:
    pixels, mask = torch.rand(4, 6, 3), torch.zeros(4, 6)
    mask[:, :3] = 1.0
    shown = dimmed(pixels, mask)
    assert torch.equal(shown[:, :3], pixels[:, :3])
    torch.testing.assert_close(shown[:, 3:], pixels[:, 3:] * DIMMED)
