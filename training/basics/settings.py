"""Frozen dataclasses of settings whose fields carry their limits and choices, and are checked on construction."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .errors import raise_if_any
from .numbers import Limits, is_finite, keep_as_whole, outside


def number(default: float, limits: Limits) -> Any:
    """A field for a number within limits; if the default is an int, only whole numbers are allowed."""
    return field(default=default, metadata={"limits": limits})


def choice(default: str, allowed: Collection[str], name: str = "") -> Any:
    """A field for one of several names.

    Args:
        allowed: the names; of a dict its keys, also those that are added later.
        name: name of the field in files, nodes and messages; empty = that in the dataclass.
    """
    return field(default=default, metadata={"choices": allowed, "name": name})


@dataclass(frozen=True)
class Settings:
    """A group of settings. A subclass adds fields, made by `number`, `choice` or plainly, and `more_problems`.

    Raises:
        InputError: on construction, with every value outside its limits or choices, and all of `more_problems`.
    """

    subject: ClassVar[str]
    """the node or file of the settings, for messages, e.g. "LoRA Config" """

    def __post_init__(self) -> None:
        values = self.numbers()
        usual: dict[str, Any] = {public_name(each): each.default for each in fields(self)}
        problems = [*outside(values, self.limits(), usual), *self._not_among_choices(), *self.more_problems()]
        raise_if_any(self.subject, problems)
        keep_as_whole(self, (name for name in values if isinstance(usual[name], int)))

    @classmethod
    def limits(cls) -> dict[str, Limits]:
        """The limits of every field that is a number."""
        return {public_name(each): each.metadata["limits"] for each in fields(cls) if "limits" in each.metadata}

    def numbers(self) -> dict[str, Any]:
        """The values whose limits are checked; a subclass may leave out those without effect."""
        return {name: value for name, value in self.flat().items() if name in self.limits()}

    def more_problems(self) -> list[str]:
        """A sentence for each further problem, e.g. of settings that exclude each other."""
        return []

    @property
    def has_finite_numbers(self) -> bool:
        """Whether every field with limits holds a finite number, within them or not."""
        return all(is_finite(value) for name, value in self.flat().items() if name in self.limits())

    def flat(self) -> dict[str, Any]:
        """The values by their names in files and nodes."""
        return {public_name(each): getattr(self, each.name) for each in fields(self)}

    def _not_among_choices(self) -> Iterator[str]:
        for each in fields(self):
            allowed, value = each.metadata.get("choices"), getattr(self, each.name)
            if allowed is not None and value not in tuple(allowed):
                yield f"{public_name(each)} is {value!r}; choose one of: {', '.join(allowed)}."


def public_name(setting: Any) -> str:
    """The name of a field of a `Settings` dataclass in files, nodes and messages."""
    return setting.metadata.get("name") or setting.name
