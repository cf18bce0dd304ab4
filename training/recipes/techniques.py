"""What several trainers call the same: optimizers, schedulers, number formats, adapters."""

import re
from collections.abc import Mapping
from typing import Any

from .ledger import Ledger, is_unset, to_number

ADAMW, PRODIGY = "adamw", "prodigy"
OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw": (ADAMW, ""),
    "adamw8bit": ("adamw8bit", ""),
    "adamw8": ("adamw8bit", ""),
    "pagedadamw8bit": ("adamw8bit", "is_paged=True"),
    "adafactor": ("adafactor", ""),
    "lion": ("lion", ""),
    "prodigy": (PRODIGY, ""),
    "adamwschedulefree": ("schedule_free", ""),
    "schedulefreeadamw": ("schedule_free", ""),
    "adam": (ADAMW, ""),
    "adam8bit": ("adamw8bit", ""),
}
"""Name in lower case -> ours, and an argument that makes it the same."""

NEAREST: dict[str, tuple[str, str]] = {
    "pagedadamw": (ADAMW, "the same, but its state is not moved out of the GPU's memory when that is full"),
    "pagedadamw32bit": (ADAMW, "the same, but its state is not moved out of the GPU's memory when that is full"),
    "lion8bit": ("lion", "the same in 32 bit"),
    "pagedlion8bit": ("lion", "the same in 32 bit"),
    "prodigy8bit": (PRODIGY, "the same in 32 bit"),
    "radamschedulefree": ("schedule_free", "Schedule-Free without RAdam's rectified start"),
    "sgdschedulefree": ("schedule_free", "Schedule-Free on AdamW instead of SGD: another learning rate fits"),
    "ademamix8bit": (ADAMW, "AdamW, without AdEMAMix' second, slower average"),
    "pagedademamix8bit": (ADAMW, "AdamW, without AdEMAMix' second, slower average"),
}
"""Name in lower case -> what takes its place, and the difference."""

WEIGHT_DECAY = {ADAMW: 0.01, "adamw8bit": 0.01}
"""Defaults of the optimizers' packages; 0 for the others."""

ARGUMENTS = {
    ADAMW: ("betas", "eps", "amsgrad"),
    "adamw8bit": ("betas", "eps", "amsgrad", "min_8bit_size", "percentile_clipping", "block_wise", "is_paged"),
    "adafactor": ("eps", "clip_threshold", "decay_rate", "beta1", "scale_parameter", "relative_step", "warmup_init"),
    "lion": ("betas",),
    PRODIGY: (
        *("betas", "beta3", "eps", "d0", "d_coef", "growth_rate", "safeguard_warmup"),
        *("decouple", "weight_decouple", "use_bias_correction", "bias_correction"),
    ),
    "schedule_free": ("betas", "eps", "r", "weight_lr_power"),
}
"""What may stand in optimizer_args."""

SCHEDULERS = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "rex": "rex",
}

ALGORITHMS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr", "diag-oft": "oft"}
"""LyCORIS' names -> our adapters."""

Defaults = Mapping[str, Mapping[str, str]]

WHOLE_FACTOR = 10_000
"""A rank above every layer's: LoKr's second factor is whole then."""

NUMBER_FORMATS = {
    **dict.fromkeys(("float", "fp32", "float32", "no"), "fp32"),
    **dict.fromkeys(("fp16", "float16"), "fp16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
}


def carry_precision(book: Ledger, key: str, default: str) -> None:
    """The arithmetic of the base model."""
    name = book.text(key, default).lower()
    if name == "auto" or name in NUMBER_FORMATS:
        book.carry(key, precision=NUMBER_FORMATS.get(name, name))
    else:
        book.replace(key, "this arithmetic is not offered (auto is bf16 where the GPU has it)", precision="auto")


def carry_save_precision(book: Ledger, key: str, default: str) -> None:
    """The number format of the file."""
    name = book.text(key, default).lower()
    if name in NUMBER_FORMATS:
        book.carry(key, save_precision=NUMBER_FORMATS[name])
    else:
        book.replace(key, "this number format is not offered", save_precision="fp16")


def carry_scheduler(book: Ledger, key: str, default: str = "constant") -> str:
    """The schedule of the learning rate; constant where the file's is not offered. Gives ours."""
    name = book.text(key, default).lower()
    if name in SCHEDULERS:
        book.carry(key, scheduler=SCHEDULERS[name])
    elif name == "cosine_with_min_lr":
        book.replace(key, "the learning rate would have ended above zero", scheduler="cosine")
    else:
        book.replace(key, "this scheduler is not offered", scheduler="constant")
    return book.values.get("scheduler", "constant")


def carry_optimizer(book: Ledger, key: str, name: str, prefix: str, defaults: Defaults | None = None) -> str:
    """The optimizer and its arguments.

    Args:
        key: the key that chooses it.
        name: what that trainer calls it.
        prefix: what the names of the keys with its arguments begin with.
        defaults: our optimizer -> arguments that the trainer sets where the file does not.

    Returns:
        Our name for it.
    """
    name = name.split(".")[-1].lower().replace("_", "").replace("-", "")
    arguments = {}
    if name in OPTIMIZERS:
        ours, argument = OPTIMIZERS[name]
        if argument:
            arguments = dict([argument.split("=")])
        book.carry(key, optimizer=ours)
    else:
        ours, lost = NEAREST.get(name, (ADAMW, "this optimizer is not offered: its learning rate may not fit"))
        if name.startswith("dadapt"):
            ours, lost = PRODIGY, "D-Adaptation is not offered; its successor takes the same learning rate of 1"
        book.replace(key, lost, optimizer=ours)
    decay = 0.0 if name in ("adam", "adam8bit") else WEIGHT_DECAY.get(ours, 0.0)
    book.carry(f"{prefix}weight_decay", weight_decay=book.number(f"{prefix}weight_decay", decay))
    if ours == "adafactor":
        arguments |= _adafactor(book, prefix)
    for each in book.names(prefix):
        argument = each.removeprefix(prefix)
        if argument == "weight_decay" or (ours == "adafactor" and argument in ("relative_step", "warmup_init")):
            continue
        if ours == "schedule_free" and argument == "warmup_steps":
            book.carry(each, warmup=float(book.whole(each)))
        elif argument not in ARGUMENTS[ours]:
            book.miss(each, f"{ours} has no such setting here")
        else:
            plain = _argument(book, each)
            if plain is None:
                book.ignore(each, "not set, so the optimizer's default")
            else:
                arguments[argument] = plain
    for argument, value in (defaults or {}).get(ours, {}).items():
        if argument in ARGUMENTS[ours]:
            arguments.setdefault(argument, value)
    keys = tuple(f"{prefix}{argument}" for argument in arguments)
    text = " ".join(f"{argument}={value}" for argument, value in arguments.items())
    if keys:
        present = tuple(each for each in keys if each in book)
        book.carry(present or keys[0], optimizer_args=text)
    return ours


def _adafactor(book: Ledger, prefix: str) -> dict[str, str]:
    """Its own learning rate is not offered: lr counts, as with relative_step=False."""
    relative, warmup = f"{prefix}relative_step", f"{prefix}warmup_init"
    follows_own = book.flag(relative, True) or book.flag(warmup)
    lost = "Adafactor would have set its own falling learning rate; here learning_rate and scheduler count: check both"
    if follows_own:
        book.note_absent(relative, True, lost)
    book.miss(relative, lost)
    book.miss(warmup, "the rise of Adafactor's own learning rate")
    scales = book.flag(f"{prefix}scale_parameter", True)
    if f"{prefix}scale_parameter" not in book and not follows_own:
        return {"scale_parameter": str(scales)}
    return {}


def _argument(book: Ledger, name: str) -> str | None:
    """An optimizer's argument as optimizer_args takes it; None where it is not set."""
    value = book.value(name)
    if is_unset(value):
        return None
    parts = value if isinstance(value, list) else _numbers(value)
    plain = [_plain(part) for part in parts]
    if not plain or None in plain:
        book.problem(name, "it must be a number, true, false, or numbers with commas between them.")
        return None
    return ",".join(str(each) for each in plain)


def _numbers(value: Any) -> list[Any]:
    if not isinstance(value, str):
        return [value]
    return [part.strip() for part in value.strip().strip("()[]").split(",") if part.strip()]


def _plain(value: Any) -> str | None:
    if isinstance(value, bool) or str(value).lower() in ("true", "false"):
        return str(value).capitalize()
    number = to_number(value)
    return None if number is None else str(value).strip() if isinstance(value, str) else f"{number:g}"


def split_arguments(text: str) -> list[str]:
    """`a=1,b=(2, 3)` or `a=1 b=2,3` -> its settings."""
    return [part.strip(" ,") for part in re.split(r"[\s,]+(?=[A-Za-z_]\w*\s*=)", text.strip()) if part.strip(" ,")]


def unquoted(value: str) -> str:
    """A command line's value without its quotes."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value
