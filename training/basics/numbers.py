"""Checks of numbers from files, nodes and the page."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite number in the range of floats."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def is_whole(value: object) -> TypeGuard[int | float]:
    """Whether a value is a whole number, as an int or as a float such as 5.0."""
    return is_finite(value) and value == int(value)


def keep_as_whole(settings: object, names: Iterable[str]) -> None:
    """Turns fields of a frozen dataclass into ints: a node's input may be 5.0, which torch refuses as a size."""
    for name in names:
        object.__setattr__(settings, name, int(getattr(settings, name)))


@dataclass(frozen=True)
class Limits:
    """The numbers that a field may have; `str` gives them in words."""

    lowest: float
    highest: float
    excluded: float | None = None
    """a number in the range that is not allowed, such as one of its ends"""
    offered_from: float | None = None
    """the lowest number in a node's field; None = `lowest`"""
    offered_to: float | None = None
    """the highest number in a node's field; None = `highest`"""

    @property
    def offered(self) -> tuple[float, float]:
        """The lowest and highest number in a node's field, whose ends are always allowed."""
        return (
            self.lowest if self.offered_from is None else self.offered_from,
            self.highest if self.offered_to is None else self.offered_to,
        )

    def __contains__(self, value: object) -> bool:
        return is_finite(value) and self.lowest <= value <= self.highest and value != self.excluded

    def __str__(self) -> str:
        if self.excluded == self.lowest:
            return f"above {self.lowest}, at most {self.highest}"
        if self.excluded == self.highest:
            return f"from {self.lowest} to below {self.highest}"
        if self.highest == math.inf:
            return f"of at least {self.lowest}"
        return f"from {self.lowest} to {self.highest}" + ("" if self.excluded is None else f", but not {self.excluded}")


def outside(values: Mapping[str, Any], limits: Mapping[str, Limits], usual: Mapping[str, float]) -> list[str]:
    """A sentence for each value that is not a number, out of its limits, or not whole where it must be.

    Args:
        limits: by name; names without a value are ignored.
        usual: a usual value by name; an int = only whole numbers are allowed.
    """
    problems = []
    for name, value in values.items():
        must_be_whole = isinstance(usual[name], int)
        if value not in limits[name] or (must_be_whole and not is_whole(value)):
            kind = "whole number" if must_be_whole else "number"
            problems.append(f"{name} is {value!r}; it must be a {kind} {limits[name]}; {usual[name]:g} is usual.")
    return problems
