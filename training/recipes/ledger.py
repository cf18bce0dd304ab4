"""The account of another trainer's file: each key is carried over, ignored with a reason, or listed as lost."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..basics.errors import InputError, raise_if_any
from ..config import FIELDS
from ..data.dataset_settings import DatasetSettings
from ..data.folder_settings import SETTINGS_FILE
from .recipe import SETTINGS_ALONE, Recipe

SECRETS = ("api_key", "huggingface_token", "hf_token", "password", "secret")
"""endings of keys whose values are hidden in reports"""
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
LARGEST_WHOLE = 2**53
LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Entry:
    """A key of the file."""

    path: str
    """in the file, with the tables around it"""
    value: Any
    written: Any = None
    """the file's own value, where `value` was derived from it; None = `value`"""
    is_made_up: bool = False
    """derived from another key, which has the line in the account"""


class Ledger:
    """The keys of one file, their conversion into our settings, and the account of it.

    Args:
        entries: by name; a name is a key without the tables around it.
        repeated: further entries of the same names, such as those of a second data set.
        defaults: the trainer's defaults of absent keys, where they differ from those in the conversion's code.
        has_defaults: an absent key has the trainer's default; False = its value is unknown.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        repeated: Iterable[tuple[str, Entry]] = (),
        defaults: Mapping[str, Any] | None = None,
        has_defaults: bool = True,
    ):
        self.values: dict[str, Any] = {}
        self.dataset: dict[str, Any] = {}
        self.problems: list[str] = []
        self._entries = dict(entries)
        self._repeated = list(repeated)
        self._defaults = dict(defaults or {})
        self._has_defaults = has_defaults
        self._accounted: set[str] = set()
        self._origins: dict[str, str] = {}
        self._carried: list[str] = []
        self._absent: list[str] = []
        self._ignored: list[str] = []
        self._missing: list[str] = []

    # ------------------------------------------------------------ reading

    def __contains__(self, name: str) -> bool:
        """Whether the file has the key, even without a value."""
        return name in self._entries

    def has(self, name: str) -> bool:
        """Whether the file gives the key a value."""
        return name in self._entries and not is_unset(self._entries[name].value)

    def value(self, name: str, default: Any = None) -> Any:
        """The key's value unconverted; the default if it is absent or not set."""
        if name not in self._entries:
            return self._defaults.get(name, default)
        return self._entries[name].value if self.has(name) else default

    def number(self, name: str, default: float = 0.0) -> float:
        """The key's value as a finite number; text is converted."""
        value = self.value(name, default)
        number = to_number(value)
        if number is None:
            self.problem(name, "it must be a number.")
            return default
        return number

    def whole(self, name: str, default: int = 0) -> int:
        """The key's value as a whole number; text and floats such as 5.0 are converted."""
        number = to_number(self.value(name, default))
        if number is None or number != int(number) or abs(number) > LARGEST_WHOLE:
            self.problem(name, "it must be a whole number.")
            return default
        return int(number)

    def flag(self, name: str, default: bool = False) -> bool:
        """The key's value as true or false; text, 0 and 1 are converted."""
        value = self.value(name, default)
        word = WORDS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
        word = bool(value) if word is None and value in (0.0, 1.0) else word
        if word is None:
            self.problem(name, "it must be true or false.")
            return default
        return word

    def as_field(self, name: str, field: str) -> Any:
        """The key's value in the type of a field of LoRAConfig; the field's default if it is not set."""
        kind = FIELDS[field].type
        default: Any = FIELDS[field].default
        if kind is int:
            return self.whole(name, default)
        if kind is float:
            return self.number(name, default)
        if kind is bool:
            return self.flag(name, default)
        if kind is str:
            return self.text(name, default)
        return tuple(filter(None, map(str.strip, self.text(name).splitlines())))

    def text(self, name: str, default: str = "") -> str:
        """The key's value as text without surrounding spaces."""
        value = self.value(name, default)
        if not isinstance(value, str):
            self.problem(name, "it must be text.")
            return default
        return value.strip()

    def names(self, prefix: str = "") -> list[str]:
        """The names that start with the prefix, in the file's order."""
        return [name for name in self._entries if name.startswith(prefix)]

    def path(self, name: str) -> str:
        """The key in the file, with the tables around it, shortened."""
        return shown_key(self._entries[name].path) if name in self._entries else name

    def problem(self, name: str, what: str) -> None:
        """Adds a problem about a key's value; `recipe` raises them all."""
        self.problems.append(f"{self.path(name)} is {self._shown(self._entries[name])}; {what}")

    # ------------------------------------------------------------ accounting

    def carry(self, names: str | tuple[str, ...], note: str = "", /, **values: Any) -> None:
        """Accounts for keys as carried over into fields of LoRAConfig; absent keys have the trainer's default."""
        if self._record_carried(names, note, "", values):
            self._put(next((name for name in as_tuple(names) if name in self), as_tuple(names)[0]), values)

    def carry_data(self, names: str | tuple[str, ...], note: str = "", /, **values: Any) -> None:
        """Accounts for keys as carried over into fields of Load Dataset or of dataset.toml."""
        alone = SETTINGS_ALONE.intersection(values)
        if self._record_carried(names, note, f"{SETTINGS_FILE}'s " if alone else "Load Dataset's ", values):
            self.dataset |= values

    def repeated(self, name: str) -> list[Entry]:
        """The further entries of a name, such as those of a second data set."""
        return [entry for each, entry in self._repeated if each == name]

    def carry_repeated(self, name: str, entries: list[Entry], note: str) -> None:
        """Accounts for further entries of a name as carried over."""
        carried = {id(entry) for entry in entries}
        self._repeated = [(each, entry) for each, entry in self._repeated if id(entry) not in carried]
        self._carried += [f"{shown_key(entry.path)} = {self._shown(entry)} -> {note}" for entry in entries]

    def ignore(self, names: str | tuple[str, ...], why: str) -> None:
        """Accounts for keys as without effect here."""
        for name in self._open(names):
            self._record(name, self._ignored, why)

    def leave(self, entry: Entry, why: str) -> None:
        """Accounts for an entry without a name as without effect."""
        self._ignored.append(f"{shown_key(entry.path)} = {self._shown(entry)}: {why}")

    def miss(self, names: str | tuple[str, ...], what: str, *neutral: Any) -> None:
        """Accounts for keys as lost; those that are off or have a neutral value, as without effect."""
        for name in self._open(names):
            if is_off(self._entries[name].value, neutral):
                self._record(name, self._ignored, "off, as here")
            else:
                self._record(name, self._missing, what)

    def replace(self, name: str, lost: str, /, **values: Any) -> None:
        """Accounts for a key whose value is not offered, with the values that replace it and what is lost by that."""
        line = f"{lost}; {self._became(values)} in its place"
        if name in self:
            self.miss(name, line)
        else:
            self.note_absent(name, self._defaults.get(name), line)
        self._put(name, values)

    def note_absent(self, name: str, default: Any, lost: str) -> None:
        """Adds a loss caused by the trainer's default of an absent key."""
        if self._has_defaults and name not in self:
            self._missing.append(f"{name} (absent, so {shown(default)}): {lost}")

    def note(self, name: str, lost: str) -> None:
        """Adds a further loss caused by a key that is accounted for."""
        self._missing.append(f"{self.path(name)}: {lost}")

    def account_for_rest(self, ignored: Mapping[str, str], missing: Mapping[str, tuple[Any, ...]]) -> None:
        """Accounts for all remaining keys; unknown ones are lost.

        Args:
            ignored: name -> why it has no effect here.
            missing: name -> (its effect in that trainer, neutral values ...).
        """
        for name in self._open(tuple(self._entries)):
            if name in ignored:
                self.ignore(name, ignored[name])
            elif name in missing:
                self.miss(name, *missing[name])
            else:
                self._record(name, self._missing, "unknown, so nothing was made of it")
        for name, entry in self._repeated:
            winner = self._entries[name]
            line = f"{shown_key(entry.path)} = {self._shown(entry)}"
            if entry.value == winner.value or name.split(".")[-1] in ignored:
                self._ignored.append(f"{line}: as {shown_key(winner.path)}")
            else:
                self._missing.append(f"{line}: one Load Dataset has one setting, and {self.path(name)} counts")
        self._repeated = []

    def recipe(self, source: str) -> Recipe:
        """The converted recipe, once all keys are accounted for.

        Raises:
            InputError: all values of the wrong type.
        """
        raise_if_any(f"The recipe ({source})", self.problems)
        left = self._open(tuple(self._entries))
        assert not left, f"not accounted for: {left}"
        self._missing += self._refused_data()
        return Recipe(
            source, self.values, self.dataset, tuple(self._carried), tuple(self._absent), tuple(self._ignored),
            tuple(self._missing), self._origins,
        )  # fmt: skip

    # ------------------------------------------------------------ internals

    def _record_carried(self, names: str | tuple[str, ...], note: str, owner: str, values: dict[str, Any]) -> bool:
        became = self._became(values, owner) + (f" ({note})" if note else "")
        present = [name for name in as_tuple(names) if name in self]
        for name in self._open(tuple(present)):
            self._record(name, self._carried, became if self.has(name) else f"not set, so {became}", " -> ")
        if not present and self._has_defaults:
            self._absent.append(f"{as_tuple(names)[0]} -> {became}")
        return bool(present) or self._has_defaults

    def _became(self, values: dict[str, Any], owner: str = "") -> str:
        return ", ".join(f"{owner}{field} = {shown(value)}" for field, value in values.items())

    def _put(self, name: str, values: dict[str, Any]) -> None:
        self.values |= values
        self._origins |= dict.fromkeys(values, self.path(name) if name in self else f"{name} (absent)")

    def _refused_data(self) -> list[str]:
        """Sentences on the converted settings that Load Dataset refuses."""
        known = {each.name for each in fields(DatasetSettings)}
        try:
            DatasetSettings(**{name: value for name, value in self.dataset.items() if name in known})
        except InputError as error:
            return [f"Load Dataset does not take this: {problem}" for problem in error.problems]
        return []

    def _open(self, names: str | tuple[str, ...]) -> list[str]:
        return [name for name in as_tuple(names) if name in self._entries and name not in self._accounted]

    def _record(self, name: str, lines: list[str], text: str, link: str = ": ") -> None:
        self._accounted.add(name)
        if self._entries[name].is_made_up:
            return
        lines.append(f"{self.path(name)} = {self._shown(self._entries[name])}{link}{text}")

    def _shown(self, entry: Entry) -> str:
        if entry.path.lower().endswith(SECRETS) and not is_unset(entry.value):
            return "(hidden)"
        return shown(entry.value if entry.written is None else entry.written)


def leaves(table: Mapping[str, Any], prefix: str = "", numbered: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Every value of a table that is no table itself, by its path, such as train.lr.

    Args:
        numbered: keys of lists of tables that are gone into too, as in datasets[0].resolution.
    """
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.", numbered)
        elif key in numbered and isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
            for number, each in enumerate(value):
                yield from leaves(each, f"{prefix}{key}[{number}].", numbered)
        else:
            yield f"{prefix}{key}", value


def as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    return (names,) if isinstance(names, str) else names


def to_number(value: Any) -> float | None:
    """The value as a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def is_unset(value: Any) -> bool:
    """Whether a value stands for "not set": null, empty, or the text None."""
    return value is None or (isinstance(value, str) and value.strip() in ("", "None"))


def is_off(value: Any, neutral: Iterable[Any] = ()) -> bool:
    """Whether a value has no effect: not set, false, zero, empty, or one of the neutral values."""
    if is_unset(value) or value in ([], {}, ()):
        return True
    allowed = {_plain(each) for each in (False, 0, *neutral)}
    return isinstance(value, bool | int | float | str) and _plain(value) in allowed


def shown(value: Any) -> str:
    """A value as one short line of text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return _short("[" + ", ".join(shown(each) for each in value[:LONGEST_SHOWN]) + "]")
    return _short(f'"{value}"' if isinstance(value, str) else str(value))


def shown_key(path: str) -> str:
    """A key as one short line of text."""
    return _short(re.sub(r"\s+", " ", path))


def _plain(value: bool | int | float | str) -> float | str:
    if isinstance(value, bool):
        return float(value)
    number = to_number(value)
    if number is not None:
        return number
    word = str(value).strip().lower()
    return float(WORDS[word]) if word in WORDS else word


def _short(text: str) -> str:
    text = "".join(character if character.isprintable() else " " for character in text[: 2 * LONGEST_SHOWN])
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."
