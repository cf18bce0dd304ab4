"""The user's changes to an imported recipe, such as `steps=2000 seed=7 learning_rate=1e-4`."""

import difflib
import re
from typing import Any

from ..basics.errors import raise_if_any
from .ledger import FIELDS, Entry, Ledger, is_unset, shown

SUBJECT = "Import Recipe"
SETTING = re.compile(r'([A-Za-z_]\w*)\s*=\s*(?:"([^"]*)"|([^\s"]+?))(?=[,;]*(?:\s|$))[\s,;]*')
"""name=value or name="some words", and the separator behind it"""


def parse_changes(text: str) -> dict[str, Any]:
    """Field of LoRAConfig -> value, in the field's type.

    Args:
        text: settings separated by spaces, commas or line breaks; values with spaces in double quotes.

    Raises:
        InputError: all unknown fields, values of the wrong type, and text that is not a setting.
    """
    entries: dict[str, Entry] = {}
    problems = []
    text = text.strip()
    while text:
        match = SETTING.match(text)
        if match is None:
            problems.append(
                f"changes has {shown(text.splitlines()[0])}, which is no setting: write name=value, as in steps=2000, "
                'and words with spaces in quotes, as in targets="all linear and convolution".'
            )
            break
        name, quoted, plain = match.groups()
        value = plain if quoted is None else quoted
        if name not in FIELDS:
            problems.append(f"changes sets {name}, which no recipe has; {_allowed(name)}")
        elif name in entries:
            problems.append(f"changes sets {name} twice: leave one of the two.")
        elif is_unset(value) and FIELDS[name].type in (int, float, bool):
            problems.append(f"changes sets {name} to nothing; it must be a value: leave it out to keep the file's.")
        else:
            entries[name] = Entry(name, value)
        text = text[match.end() :]
    book = Ledger(entries)
    values = {name: book.as_field(name, name) for name in entries}
    raise_if_any(SUBJECT, [*problems, *(f"changes: {problem}" for problem in book.problems)])
    return values


def _allowed(name: str) -> str:
    near = difflib.get_close_matches(name, FIELDS, 1)
    return f"did you mean {near[0]}?" if near else f"it may be one of: {', '.join(FIELDS)}."
