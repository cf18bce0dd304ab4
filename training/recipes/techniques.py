"""Settings that several trainers have under the same names: adapters, optimizers, schedulers, number formats."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from ..adapters import KINDS
from ..basics.name_values import LISTED, cut_settings
from ..config.optimizers import ADAFACTOR, ADAMW, ForeignName, OptimizerKind, optimizer_by_foreign_name
from .ledger import Entry, Ledger, is_unset, to_number

NOT_OFFERED = ForeignName(difference="this optimizer is not offered: its learning rate may not fit")
SCHEDULERS = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "rex": "rex",
}

Defaults = Mapping[str, Mapping[str, str]]

WHOLE_FACTOR = 10_000
"""a rank above that of every layer, with which LoKr does not decompose its second factor"""

NUMBER_FORMATS = {
    **dict.fromkeys(("float", "fp32", "float32", "no"), "fp32"),
    **dict.fromkeys(("fp16", "float16"), "fp16"),
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
}


def in_optimizer_steps(passes: int, per_step: int) -> int:
    """A number of forward passes as optimizer steps, of which each has `per_step`; rounded up."""
    return math.ceil(passes / max(per_step, 1))


def carry_precision(book: Ledger, key: str, default: str) -> None:
    """Carries the number format of the base model's arithmetic over."""
    name = book.text(key, default).lower()
    if name == "auto" or name in NUMBER_FORMATS:
        book.carry(key, precision=NUMBER_FORMATS.get(name, name))
    else:
        book.replace(key, "this arithmetic is not offered (auto is bf16 where the GPU has it)", precision="auto")


def carry_save_precision(book: Ledger, key: str, default: str) -> None:
    """Carries the number format of the LoRA file over."""
    name = book.text(key, default).lower()
    if name in NUMBER_FORMATS:
        book.carry(key, save_precision=NUMBER_FORMATS[name])
    else:
        book.replace(key, "this number format is not offered", save_precision="fp16")


def carry_scheduler(book: Ledger, key: str, default: str = "constant") -> str:
    """Carries the learning-rate scheduler over, constant if it is not offered; returns ours."""
    name = book.text(key, default).lower()
    if name in SCHEDULERS:
        book.carry(key, scheduler=SCHEDULERS[name])
    elif name == "cosine_with_min_lr":
        book.replace(key, "the learning rate would have ended above zero", scheduler="cosine")
    else:
        book.replace(key, "this scheduler is not offered", scheduler="constant")
    return book.values.get("scheduler", "constant")


def adapter_named(name: str, trainer: Literal["lycoris", "kohya", "ai_toolkit"]) -> str | None:
    """Our adapter for another trainer's name; None if no row of KINDS has the name.

    Args:
        trainer: the field of `AdapterNames` to look in.
    """
    return next((kind for kind, adapter in KINDS.items() if name in getattr(adapter.names, trainer)), None)


def carry_optimizer(book: Ledger, key: str, name: str, prefix: str, defaults: Defaults | None = None) -> OptimizerKind:
    """Carries the optimizer and its arguments over.

    Args:
        key: of the optimizer's name in the file.
        name: of the optimizer, in that trainer.
        prefix: of the keys of the optimizer's arguments.
        defaults: our optimizer's name -> arguments that the trainer sets where the file does not.

    Returns:
        Our optimizer.
    """
    kind, foreign = optimizer_by_foreign_name(name) or (ADAMW, NOT_OFFERED)
    if foreign.difference:
        book.replace(key, foreign.difference, optimizer=kind.name)
    else:
        book.carry(key, optimizer=kind.name)
    decay = kind.weight_decay if foreign.weight_decay is None else foreign.weight_decay
    book.carry(f"{prefix}weight_decay", weight_decay=book.number(f"{prefix}weight_decay", decay))
    arguments = dict([foreign.argument.split("=")]) if foreign.argument else {}
    accounted = {"weight_decay"}
    if kind is ADAFACTOR:
        arguments |= _adafactor(book, prefix)
        accounted |= {"relative_step", "warmup_init"}
    for each in book.names(prefix):
        argument = each.removeprefix(prefix)
        if argument in accounted:
            continue
        if kind.averages_weights and argument == "warmup_steps":
            book.carry(each, warmup=float(book.whole(each)))
        elif argument not in kind.arguments:
            book.miss(each, f"{kind.name} has no such setting here")
        else:
            plain = _argument(book, each)
            if plain is None:
                book.ignore(each, "not set, so the optimizer's default")
            else:
                arguments[argument] = plain
    for argument, value in (defaults or {}).get(kind.name, {}).items():
        if argument in kind.arguments:
            arguments.setdefault(argument, value)
    keys = tuple(f"{prefix}{argument}" for argument in arguments)
    text = " ".join(f"{argument}={value}" for argument, value in arguments.items())
    if keys:
        present = tuple(each for each in keys if each in book)
        book.carry(present or keys[0], optimizer_args=text)
    return kind


def join_betas(entries: dict[str, Entry], first: str, second: str, name: str) -> None:
    """Makes one argument, `betas`, of the two numbers of a trainer that has them apart; of one alone, nothing."""
    pair = [entries.get(first), entries.get(second)]
    given = [entry for entry in pair if entry is not None and not is_unset(entry.value)]
    if len(given) == 2:
        del entries[first], entries[second]
        entries[name] = Entry(", ".join(entry.path for entry in given), [entry.value for entry in given])


def _adafactor(book: Ledger, prefix: str) -> dict[str, str]:
    """Accounts for Adafactor's own learning rate, which is not offered: lr counts, as with relative_step=False."""
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
    """An optimizer's argument in the form of optimizer_args; None if it is not set."""
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
    """`a=1,b=(2, 3)` or `a=1 b=2,3` -> ["a=1", "b=(2, 3)"]."""
    return [part.strip(" ,") for part in cut_settings(text, LISTED) if part.strip(" ,")]


def unquoted(value: str) -> str:
    """A value of a command line without its quotes."""
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value
