"""Numbers that came from outside."""

import math
from typing import TypeGuard


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, of a size that a float can have."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond the floats
        return False
