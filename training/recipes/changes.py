"""The user's changes to an imported recipe, such as `steps=2000 seed=7 learning_rate=1e-4`."""

import difflib
import re
from typing import Any

from ..basics.errors import raise_if_any
from .ledger import FIELDS, LONGEST_SHOWN, Entry, Ledger, is_unset, shown, shown_key

SUBJECT = "Import Recipe"
SETTING = re.compile(r'([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"[,;]*|([^\s"]+))(?!\S)')
"""name=value or name="some words", with commas and semicolons behind it"""
BETWEEN = re.compile(r"[\s,;]*")
MOST_UNKNOWN = 20
"""names that no recipe has and that are looked up among those that it has"""


def parse_changes(text: str) -> dict[str, Any]:
    """Field of LoRAConfig -> value, in the field's type.

    Args:
        text: settings separated by spaces, commas or line breaks; values with spaces in double quotes.

    Raises:
        InputError: all unknown fields, values of the wrong type, and text that is not a setting.
    """
    entries: dict[str, Entry] = {}
    problems = []
    text, at, unknown = text.strip(), 0, 0
    while at < len(text):
        match = SETTING.match(text, at)
        if match is None:
            line = text[at : at + 2 * LONGEST_SHOWN].splitlines()[0]
            problems.append(
                f"changes has {shown(line)}, which is no setting: write name=value, as in steps=2000, "
                'and words with spaces in quotes, as in targets="all linear and convolution".'
            )
            break
        name, quoted, plain = match.groups()
        value = (plain.rstrip(",;") or plain[0]) if quoted is None else quoted
        if name not in FIELDS:
            unknown += 1
            if unknown <= MOST_UNKNOWN:
                problems.append(f"changes sets {shown_key(name)}, which no recipe has; {_allowed(name)}")
        elif name in entries:
            problems.append(f"changes sets {name} twice: leave one of the two.")
        elif is_unset(value) and FIELDS[name].type in (int, float, bool):
            problems.append(f"changes sets {name} to nothing; it must be a value: leave it out to keep the file's.")
        else:
            entries[name] = Entry(name, value)
        at = BETWEEN.match(text, match.end()).end()  # pyright: ignore[reportOptionalMemberAccess]
    if unknown > MOST_UNKNOWN:
        problems.append(f"changes sets {unknown - MOST_UNKNOWN:,} more names that no recipe has.")
    book = Ledger(entries)
    values = {name: book.as_field(name, name) for name in entries}
    raise_if_any(SUBJECT, [*problems, *(f"changes: {problem}" for problem in book.problems)])
    return values


def _allowed(name: str) -> str:
    near = difflib.get_close_matches(name[:LONGEST_SHOWN], FIELDS, 1)
    return f"did you mean {near[0]}?" if near else f"it may be one of: {', '.join(FIELDS)}."
