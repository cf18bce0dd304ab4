"""Pictures in labelled rows and columns: the contact sheet of a dataset, the strength grid of a LoRA."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .pictures import to_image

GROUND = (32, 33, 36)
TEXT = (232, 234, 237)
FAINT = (154, 160, 166)
MARGIN = 8
DIMMED = 0.2
"""brightness where the mask is 0"""


def contact_sheet(entries: Sequence[tuple[torch.Tensor, str, str]], columns: int, side: int) -> torch.Tensor:
    """Pictures in rows, each with a heading and a caption below.

    Args:
        entries: (pixels (H, W, 3), heading, caption).
        columns: pictures per row.
        side: longest side of a picture on the sheet, pixels.

    Returns:
        (1, H, W, 3) in [0, 1].
    """
    small, lines = _font(11), 3
    text_height = 16 + lines * 14
    rows = -(-len(entries) // columns)
    width = MARGIN + columns * (side + MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + rows * (side + text_height + MARGIN)), GROUND)
    pen = ImageDraw.Draw(sheet)
    for number, (pixels, heading, caption) in enumerate(entries):
        left = MARGIN + number % columns * (side + MARGIN)
        top = MARGIN + number // columns * (side + text_height + MARGIN)
        picture = to_image(pixels)
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (side - picture.width) // 2, top + (side - picture.height) // 2))
        pen.text((left, top + side + 3), heading, FAINT, small)
        for line, text in enumerate(wrap(caption, small, side, lines)):
            pen.text((left, top + side + 17 + line * 14), text, TEXT, small)
    return _pixels(sheet)


def dimmed(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A picture (H, W, 3), darkened where the mask (H, W) is low."""
    return pixels * (DIMMED + (1.0 - DIMMED) * mask[..., None])


def strength_grid(rows: Sequence[tuple[str, Sequence[torch.Tensor]]], column_labels: Sequence[str]) -> torch.Tensor:
    """A labelled grid: a row per prompt, a column per strength.

    Args:
        rows: (prompt, a picture (H, W, 3) per strength, all of one size).
        column_labels: one per strength.

    Returns:
        (1, H, W, 3) in [0, 1].
    """
    height, width = rows[0][1][0].shape[:2]
    font, small = _font(max(13, width // 24)), _font(max(12, width // 32))
    head, line_height = font.size + 2 * MARGIN, small.size + 3
    lines = 2
    row_height = lines * line_height + MARGIN + height + MARGIN
    sheet_width = MARGIN + len(column_labels) * (width + MARGIN)
    sheet = Image.new("RGB", (sheet_width, int(head + len(rows) * row_height)), GROUND)
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        pen.text((MARGIN + column * (width + MARGIN), MARGIN), label, TEXT, font)
    for row, (prompt, pictures) in enumerate(rows):
        top = int(head + row * row_height)
        for line, text in enumerate(wrap(prompt, small, sheet_width - 2 * MARGIN, lines)):
            pen.text((MARGIN, top + line * line_height), text, FAINT, small)
        for column, pixels in enumerate(pictures):
            place = (MARGIN + column * (width + MARGIN), int(top + lines * line_height + MARGIN))
            sheet.paste(to_image(pixels), place)
    return _pixels(sheet)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """The text in lines, the last one ending in an ellipsis if the text is too long.

    Args:
        width: of a line, pixels.
        lines: at most.
    """
    words, out, current = " ".join(text.split()).split(" "), [], ""
    for index, word in enumerate(words):
        longer = f"{current} {word}".strip()
        if font.getlength(longer) <= width or not current:
            current = longer
            continue
        out.append(current)
        current = word
        if len(out) == lines:
            return [*out[:-1], _cut(f"{out[-1]} {' '.join(words[index:])}", font, width)]
    return [_cut(line, font, width) for line in [*out, current] if line]


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    text = text[:width]  # a character is at least a pixel wide
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _pixels(sheet: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255.0)[None]
