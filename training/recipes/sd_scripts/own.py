"""Keys that our own files have beside kohya's; they override those, as they are exactly the recipe."""

from ...lora.metadata import OWN
from ..ledger import FIELDS, Ledger

ARGUMENTS = ("targets", "layer_rules")
"""of our own, in ss_network_args"""


def is_own(book: Ledger) -> bool:
    """Whether our own export wrote the file."""
    return f"network_args.{ARGUMENTS[0]}" in book


def carry_own(book: Ledger) -> None:
    """Accounts for the keys of our own."""
    for name in ARGUMENTS:
        key = f"network_args.{name}"
        if book.has(key):
            book.carry(key, **{name: book.text(key)})
    for key in book.names(OWN):
        field = key.removeprefix(OWN)
        if field in FIELDS and book.has(key):
            book.carry(key, **{field: book.as_field(key, field)})
