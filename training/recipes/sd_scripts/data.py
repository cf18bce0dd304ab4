"""Arguments of the pictures: Load Dataset's settings."""

import math
from typing import Any

from ..ledger import Ledger, to_number
from . import keys


def carry_data(book: Ledger) -> None:
    """Accounts for the keys of the pictures and their captions."""
    side = _resolution(book)
    if book.flag("enable_bucket"):
        book.ignore("enable_bucket", "as here")
        book.carry_data("min_bucket_reso", shortest_side=book.whole("min_bucket_reso", 256))
        book.carry_data("max_bucket_reso", longest_side=book.whole("max_bucket_reso", 1024))
        book.carry_data("bucket_reso_steps", bucket_step=book.whole("bucket_reso_steps", 64))
    elif side:
        book.carry_data("enable_bucket", "every picture is cut square", shortest_side=side, longest_side=side)
        book.ignore(("min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"), "enable_bucket is off")
    else:
        book.miss("enable_bucket", "every picture would have been cut to one shape; here they go into buckets")
        book.ignore(
            ("enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps"), "enable_bucket is off"
        )
    for key, field in (("flip_aug", "flip"), ("random_crop", "random_crop"), ("shuffle_caption", "shuffle_tags")):
        book.carry_data(key, **{field: book.flag(key)})
    book.carry_data("keep_tokens", keep_tokens=book.whole("keep_tokens"))
    book.carry_data("caption_dropout_rate", caption_dropout=book.number("caption_dropout_rate"))
    book.carry_data("caption_tag_dropout_rate", tag_dropout=book.number("caption_tag_dropout_rate"))
    for name in ("trigger_word", "caption_prefix", "caption_suffix"):
        if book.has(name):
            book.carry_data(name, **{name: book.text(name)})
    if book.has("dataset_repeats"):
        book.carry_data("dataset_repeats", repeats=book.whole("dataset_repeats", 1))
    book.carry_data("prior_loss_weight", prior_loss_weight=book.number("prior_loss_weight", 1.0))
    masks = tuple(name for name in ("masked_loss", "alpha_mask") if name in book)
    book.carry_data(masks or "masked_loss", masked_loss=any([book.flag(name) for name in masks]))
    extension = book.text("caption_extension").lower()
    if extension and extension not in (".txt", ".caption"):
        book.miss(
            "caption_extension", "Load Dataset reads captions from .txt, .caption and metadata.jsonl: rename them"
        )
    book.ignore("caption_extension", "Load Dataset looks for .txt and .caption")
    for name in book.names("regularisation."):
        plain = name.removeprefix("regularisation.")
        if plain in ("is_reg", "image_dir", *keys.IGNORED):
            book.ignore(name, "choose the folder as regularisation_folder in Load Dataset")
        else:
            book.miss(
                name, "a setting of the regularisation pictures alone; put it into a settings file in their folder"
            )


def _resolution(book: Ledger) -> int | None:
    """Carries the resolution over; returns it, or None if the file has none or one that is not square."""
    if not book.has("resolution"):
        book.ignore("resolution", "not set")
        return None
    sides = to_sides(book.value("resolution"))
    if not sides:
        book.problem("resolution", "it must be a number of pixels, or a width and a height.")
        return None
    if sides[0] != sides[1]:
        book.carry_data("resolution", "of the same area", resolution=math.isqrt(sides[0] * sides[1]))
        return None
    book.carry_data("resolution", resolution=sides[0])
    further = [each for each in book.repeated("resolution") if each.path.startswith("datasets[")]
    squares = {entry.path: to_sides(entry.value) for entry in further}
    further = [each for each in further if (pair := squares[each.path]) and pair[0] == pair[1] != sides[0]]
    if further:
        extra = dict.fromkeys(squares[entry.path][0] for entry in further)
        book.dataset["extra_resolutions"] = ", ".join(map(str, extra))
        book.carry_repeated("resolution", further, "one of Load Dataset's extra_resolutions")
    return sides[0]


def to_sides(value: Any) -> tuple[int, ...]:
    """512, "512", "512,768", [512, 768] or "(512, 768)" -> (width, height); else ()."""
    parts = value if isinstance(value, list) else str(value).strip("()[] ").replace(",", " ").split()
    numbers = [to_number(part) for part in parts]
    sides = [int(number) for number in numbers if number is not None and 1 <= number <= 2**20]
    if len(sides) != len(parts) or len(sides) not in (1, 2):
        return ()
    return sides[0], sides[-1]
