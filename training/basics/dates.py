"""Dates in names, written as in the host's save nodes: %year%-%month%-%day%, %date:yyyy-MM-dd%."""

import re
import time

FIELDS = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
"""The host's words between percent signs -> strftime's."""
LETTERS = {"d": "tm_mday", "M": "tm_mon", "h": "tm_hour", "m": "tm_min", "s": "tm_sec"}
"""Letters of the page's date formats; two of a letter have a leading zero."""


def with_dates(name: str, now: time.struct_time) -> str:
    """The name with the time in place of %year% and its like, and of %date:...%; other text stays."""
    for word, field in FIELDS.items():
        name = name.replace(f"%{word}%", time.strftime(field, now))
    return re.sub(r"%date:([^%]+)%", lambda found: _formatted(found[1], now), name)


def _formatted(text: str, now: time.struct_time) -> str:
    """A format of the page, such as yyyy-MM-dd or hhmmss, filled in."""

    def part(found: re.Match[str]) -> str:
        letters = found[0]
        if letters[0] == "y":
            return {"yy": f"{now.tm_year:04}"[-2:], "yyyy": str(now.tm_year)}.get(letters, letters)
        return str(getattr(now, LETTERS[letters[0]])).zfill(len(letters))

    return re.sub("dd?|MM?|hh?|mm?|ss?|yyy?y?", part, text)
