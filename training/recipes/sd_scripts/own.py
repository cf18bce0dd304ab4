"""What our own files say beside kohya's keys: it counts before them, as it is exactly the recipe."""

from ...lora.metadata import OWN
from ..ledger import FIELDS, Ledger

ARGUMENTS = ("targets", "layer_rules")
"""Of ss_network_args."""


def is_own(book: Ledger) -> bool:
    """Whether the file is one of ours."""
    return f"network_args.{ARGUMENTS[0]}" in book


def carry_own(book: Ledger) -> None:
    """Settles our own keys."""
    for name in ARGUMENTS:
        key = f"network_args.{name}"
        if book.has(key):
            book.carry(key, **{name: book.text(key)})
    for key in book.names(OWN):
        field = key.removeprefix(OWN)
        if field in FIELDS and book.has(key):
            book.carry(key, **{field: book.as_field(key, field)})
