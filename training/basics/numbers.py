"""Numbers that came from outside."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, of a size that a float can have."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def is_whole(value: object) -> TypeGuard[int | float]:
    """Whether a value is a whole number, maybe written as 5.0."""
    return is_finite(value) and value == int(value)


def keep_as_whole(settings: object, names: Iterable[str]) -> None:
    """Makes whole numbers of a frozen dataclass ints: a wire may bring 5.0, which is no size of a tensor."""
    for name in names:
        object.__setattr__(settings, name, int(getattr(settings, name)))


@dataclass(frozen=True)
class Limits:
    """Which numbers a field may have; as text, in words."""

    lowest: float
    highest: float
    excluded: float | None = None
    """an end, or a number between, that is not allowed"""
    offered_from: float | None = None
    """the lowest that a node offers; None = the lowest"""
    offered_to: float | None = None
    """the highest that a node offers; None = the highest"""

    @property
    def offered(self) -> tuple[float, float]:
        """The lowest and highest number that a node offers: a field there has two ends, which are allowed."""
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
    """A sentence for each value that is no number, not within the limits of its name, or not whole where it must be.

    Args:
        limits: of more names, maybe, than there are values.
        usual: a value to start from; where it is an int, only whole numbers are allowed.
    """
    problems = []
    for name, value in values.items():
        must_be_whole = isinstance(usual[name], int)
        if value not in limits[name] or (must_be_whole and not is_whole(value)):
            kind = "whole number" if must_be_whole else "number"
            problems.append(f"{name} is {value!r}; it must be a {kind} {limits[name]}; {usual[name]:g} is usual.")
    return problems
