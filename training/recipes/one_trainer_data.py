"""OneTrainer's pictures, masks, files and sample pictures."""

import math

from . import one_trainer_keys as keys
from .ledger import Ledger, to_number
from .one_trainer_keys import Family
from .techniques import in_optimizer_steps

FIRST = "concepts[0]."


def carry_samples(book: Ledger) -> None:
    """Accounts for the files and sample pictures that are written during the run."""
    per_step = book.whole("gradient_accumulation_steps", 1)
    save = _every(book, "save_every", 0, "NEVER", per_step)
    if save is not None:
        book.carry("save_every", save_every=save)
    prompts = _prompts(book)
    names = tuple(book.names("samples["))
    if prompts:
        book.carry(tuple(name for name in names if name.endswith("].prompt")), sample_prompts=tuple(prompts))
        sample = _every(book, "sample_after", 10, "MINUTE", per_step)
        if sample is not None:
            book.carry("sample_after", sample_every=sample)
        book.carry("samples[0].cfg_scale", sample_guidance=book.number("samples[0].cfg_scale", 7.0))
        book.carry("samples[0].diffusion_steps", sample_steps=book.whole("samples[0].diffusion_steps", 20))
        book.ignore("sample_definition_file_name", "the prompts stand in this file")
    else:
        book.ignore(("sample_after", "sample_after_unit"), "this file has no prompts, so no sample pictures")
    book.ignore((*names, "samples"), "sample pictures take the size and the sampler that Train LoRA gives them")
    book.ignore(("save_every_unit", "sample_after_unit"), "the number beside it says it")


def _every(book: Ledger, name: str, number: int, unit: str, per_step: int) -> int | None:
    """Optimizer steps between two files; None if it is counted otherwise, which is then lost."""
    count, unit = book.whole(name, number), book.text(f"{name}_unit", unit).upper()
    if unit == "NEVER" or not count:
        return 0
    if unit == "STEP":
        return in_optimizer_steps(count, per_step)
    lost = f"counted in units of {unit}; here in steps: in Import Recipe's changes set {name.partition('_')[0]}_every"
    book.miss(name, lost)
    book.note_absent(name, count, lost)
    return None


def _prompts(book: Ledger) -> list[str]:
    prompts: list[str] = []
    for name in book.names("samples["):
        head, _, field = name.partition("].")
        if field == "prompt" and book.has(name) and book.flag(f"{head}].enabled", True):
            prompts.append(" ".join(book.text(name).split()))
    return list(dict.fromkeys(prompts))


def carry_data(book: Ledger, family: Family) -> None:
    """Accounts for the settings of the pictures; the first concept's are Load Dataset's."""
    _resolution(book)
    if book.flag("aspect_ratio_bucketing", True):
        book.ignore("aspect_ratio_bucketing", "as here")
    else:
        side = book.dataset.get("resolution", 512)
        book.carry_data("aspect_ratio_bucketing", "every picture is cut square", shortest_side=side, longest_side=side)
    is_masked = book.flag("masked_training")
    book.carry_data("masked_training", masked_loss=is_masked)
    if is_masked:
        book.carry_data("unmasked_weight", unmasked_weight=book.number("unmasked_weight", 0.1))
        lost = "the share of steps without the mask"
        book.note_absent("unmasked_probability", 0.1, lost)
        book.miss("unmasked_probability", lost)
    off = ("unmasked_weight", "unmasked_probability", "normalize_masked_area_loss", "masked_prior_preservation_weight")
    if not is_masked:
        book.ignore(off, "masked_training is off")
    dropouts = [each for each in family.encoders if book.has(f"{each}.dropout_probability")]
    rates = [book.number(f"{each}.dropout_probability") for each in dropouts]
    if any(rates):
        note = "for all text encoders at once" if len(family.encoders) > 1 else ""
        names = tuple(f"{each}.dropout_probability" for each in dropouts)
        book.carry_data(names, note, caption_dropout=max(rates))
    _concepts(book)


def _resolution(book: Ledger) -> None:
    """One number, several with commas between them, of which a picture takes one by chance, or a width x height."""
    text = str(book.value("resolution", "512"))
    areas = []
    for part in text.lower().split(","):
        sides = [to_number(side) for side in part.split("x")]
        whole = [side for side in sides if side is not None and 1 <= side <= 2**20]
        if len(whole) != len(sides) or len(sides) > 2:
            book.problem("resolution", "it must be a number of pixels, several with commas, or a width x height.")
            return
        areas.append(math.isqrt(int(whole[0] * whole[-1])))
    largest, *extra = sorted(dict.fromkeys(areas), reverse=True)
    note = "there each picture takes one by chance, here each one" if extra else ""
    book.carry_data("resolution", note, resolution=largest, extra_resolutions=", ".join(map(str, extra)))


def _concepts(book: Ledger) -> None:
    flags = {"image.enable_random_flip": "flip", "image.enable_crop_jitter": "random_crop"}
    for name, field in {**flags, "text.enable_tag_shuffling": "shuffle_tags"}.items():
        if FIRST + name in book:
            book.carry_data(FIRST + name, **{field: book.flag(FIRST + name)})
    if book.flag(f"{FIRST}text.enable_tag_shuffling") or book.flag(f"{FIRST}text.tag_dropout_enable"):
        book.carry_data(f"{FIRST}text.keep_tags_count", keep_tokens=book.whole(f"{FIRST}text.keep_tags_count", 1))
    _tag_dropout(book)
    if book.has(f"{FIRST}balancing") and book.text(f"{FIRST}balancing_strategy", "REPEATS").upper() == "REPEATS":
        _repeats(book)
    if book.has(f"{FIRST}loss_weight"):
        book.carry_data(f"{FIRST}loss_weight", loss_weight=book.number(f"{FIRST}loss_weight", 1.0))
    for name in book.names("concepts["):
        head, _, setting = name.partition("].")
        first = book.value(FIRST + setting)
        if setting in keys.IN_CONCEPTS:
            book.miss(name, keys.IN_CONCEPTS[setting])
        elif setting in ("balancing_strategy", "balancing") and head == "concepts[0":
            book.miss(name, "so many pictures of the folder in each epoch", 1, "REPEATS")
        elif head != "concepts[0" and setting in SET and book.value(name) != first:
            book.miss(name, f"one Load Dataset has one setting; a settings file in its folder can set {SET[setting]}")
        else:
            book.ignore(name, "choose the folder in Load Dataset; without effect on what is learned, or switched off")
    book.ignore("concepts", "not set: choose the folder in Load Dataset")


SET = {
    "image.enable_random_flip": "flip",
    "text.enable_tag_shuffling": "shuffle_tags",
    "balancing": "repeats",
    "loss_weight": "loss_weight",
    "type": "regularisation",
}
"""settings of a concept -> their names in a folder's settings file"""


def _tag_dropout(book: Ledger) -> None:
    switch, mode = f"{FIRST}text.tag_dropout_enable", f"{FIRST}text.tag_dropout_mode"
    share = f"{FIRST}text.tag_dropout_probability"
    if not book.flag(switch):
        return
    if book.text(mode, "FULL").upper() == "RANDOM":
        book.carry_data((switch, share), tag_dropout=book.number(share))
    elif book.text(mode, "FULL").upper() == "FULL":
        book.miss(switch, "all tags of a caption at once, but the first ones; caption_dropout comes near")
    else:
        book.miss(switch, "tags dropped at a rate that grows along the caption; tag_dropout comes near")


def _repeats(book: Ledger) -> None:
    repeats = book.number(f"{FIRST}balancing", 1.0)
    if repeats >= 1 and repeats == int(repeats):
        book.carry_data(f"{FIRST}balancing", repeats=int(repeats))
    else:
        book.miss(f"{FIRST}balancing", "a part of the pictures in each epoch, or one picture more than others")
