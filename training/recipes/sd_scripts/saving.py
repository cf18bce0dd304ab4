"""Arguments of files and sample pictures written during a run."""

import re

from ..ledger import Ledger, to_number
from ..techniques import carry_save_precision


def carry_saving(book: Ledger) -> None:
    """Accounts for the keys of files and samples."""
    carry_save_precision(book, "save_precision", "float")
    book.carry("save_every_n_steps", save_every=book.whole("save_every_n_steps"))
    prompts, flags = sample_prompts(book)
    every = book.whole("sample_every_n_steps")
    if prompts:
        book.carry("sample_prompts", sample_prompts=prompts)
        if "l" in flags:
            book.values["sample_guidance"] = flags.pop("l")
        if "s" in flags:
            book.values["sample_steps"] = int(flags.pop("s"))
        if flags:
            book.note("sample_prompts", "sizes, seeds and negative prompts of single samples")
        book.carry("sample_every_n_steps", sample_every=every)
        if every:
            book.miss("sample_sampler", "the sampler of sample pictures")
        book.ignore("sample_sampler", "no sample pictures")
    else:
        book.miss("sample_prompts", "the prompts are in that file: write them into Import Recipe's changes")
        book.miss("sample_every_n_steps", "sample pictures need prompts, which this file does not hold")
        book.ignore("sample_sampler", "no sample pictures")


def sample_prompts(book: Ledger) -> tuple[tuple[str, ...], dict[str, float]]:
    """(prompts in the file itself, one per line; flag -> its first number, as in --l 7 --s 20)."""
    value = book.value("sample_prompts")
    if not isinstance(value, str) or re.fullmatch(r"\S[^\n]*\.(txt|toml|json)", value.strip(), re.IGNORECASE):
        return (), {}
    lines = [line.strip() for line in value.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    prompts, flags = [], {}
    for line in lines:
        prompt, *given = re.split(r"\s--(?=[a-z])", f" {line}")
        if prompt.strip():
            prompts.append(prompt.strip())
        for flag, _, text in (each.strip().partition(" ") for each in given):
            number = to_number(text)
            flags.setdefault(flag, 0.0 if number is None else number)
    for flag, lowest in (("l", 0.0), ("s", 1.0)):
        if flag in flags and flags[flag] < lowest:
            del flags[flag]
    return tuple(dict.fromkeys(prompts)), flags
