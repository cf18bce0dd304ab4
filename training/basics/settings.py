"""Frozen dataclasses of settings whose fields carry their limits and choices, and are checked on construction."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .errors import raise_if_any
from .numbers import Limits, is_finite, keep_as_whole, outside


def number(default: float, limits: Limits) -> Any:
    """A field that holds a number within limits; where the default is an int, only whole numbers are allowed."""
    return field(default=default, metadata={"limits": limits})


def choice(default: str, allowed: Collection[str], name: str = "") -> Any:
    """A field that holds one of some names.

    Args:
        allowed: the names; a table whose keys are the names may grow later.
        name: what files, nodes and messages call the field; empty = as the dataclass does.
    """
    return field(default=default, metadata={"choices": allowed, "name": name})


@dataclass(frozen=True)
class Settings:
    """A group of settings. A subclass adds fields, made by `number`, `choice` or plainly, and `more_problems`.

    Raises:
        InputError: on construction, with every field that is out of its limits or none of its choices, and all of
            `more_problems`.
    """

    subject: ClassVar[str]
    """what the settings belong to, for messages, e.g. "LoRA Config" """

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
        """The values whose limits are checked; a subclass leaves out those without effect."""
        return {name: value for name, value in self.flat().items() if name in self.limits()}

    def more_problems(self) -> list[str]:
        """A sentence for each further problem, such as settings that exclude each other."""
        return []

    @property
    def has_finite_numbers(self) -> bool:
        """Whether every field with limits holds a finite number, within them or not."""
        return all(is_finite(value) for name, value in self.flat().items() if name in self.limits())

    def flat(self) -> dict[str, Any]:
        """Every value by the name that files and nodes use."""
        return {public_name(each): getattr(self, each.name) for each in fields(self)}

    def _not_among_choices(self) -> Iterator[str]:
        for each in fields(self):
            allowed, value = each.metadata.get("choices"), getattr(self, each.name)
            if allowed is not None and value not in allowed:
                yield f"{public_name(each)} is {value!r}; choose one of: {', '.join(allowed)}."


def public_name(setting: Any) -> str:
    """What files, nodes and messages call a field of a `Settings` dataclass."""
    return setting.metadata.get("name") or setting.name
