"""Numbers that came from outside."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, of a size that a float can have."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False


def outside(
    values: Mapping[str, Any], limits: Mapping[str, tuple[float, float]], usual: Mapping[str, float]
) -> list[str]:
    """A sentence for each value that is no number, or not within the limits of its name.

    Args:
        limits: lowest and highest; of more names, maybe, than there are values.
        usual: a value to start from; of fewer names, maybe.
    """
    problems = []
    for name, value in values.items():
        lowest, highest = limits[name]
        if not is_finite(value) or not lowest <= value <= highest:
            allowed = f"of at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
            advice = f"; {usual[name]:g} is usual" if name in usual else ""
            problems.append(f"{name} is {value!r}; it must be a number {allowed}{advice}.")
    return problems
