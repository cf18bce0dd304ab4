"""Text of several `name=value`, cut into them in a time that grows with its length alone."""

import re

SPACED = re.compile(r"(?<!\S)\w+\s*=")
"""how a setting begins, where white space lies between two"""
LISTED = re.compile(r"(?<![^\s,])[A-Za-z_]\w*\s*=")
"""how one begins, where commas may lie between two"""


def cut_settings(text: str, start: re.Pattern[str] = SPACED) -> list[str]:
    """`a=1 b=2, 3` -> ["a=1", "b=2, 3"]; text before the first name is a part of its own.

    Args:
        start: SPACED or LISTED; the name of each setting, and the =. It must find all of them in one pass: a pattern
            that looks ahead from every separator takes a time in the square of the text.
    """
    starts = [match.start() for match in start.finditer(text)]
    cuts = [0, *(position for position in starts if position), len(text)]
    parts = [text[first:end].strip() for first, end in zip(cuts, cuts[1:], strict=False)]
    return [part for part in parts if part]
