"""kohya-ss/sd-scripts: the arguments of its train_network scripts, from a TOML file.

Names, defaults and meaning are those of github.com/kohya-ss/sd-scripts in 2026 (library/train_util.py,
train_network.py, networks/, library/config_util.py) and of github.com/KohakuBlueleaf/LyCORIS (lycoris/kohya.py).
"""

from collections.abc import Mapping
from typing import Any

from ..ledger import Ledger
from ..recipe import Recipe
from . import keys
from .data import carry_data
from .entries import LISTS, argument_entries, file_entries, first_of_each, renamed, subset_entries
from .learning import carry_learning
from .network import carry_network
from .objective import carry_objective
from .own import carry_own
from .saving import carry_saving

__all__ = [
    "LISTS",
    "argument_entries",
    "carry",
    "file_entries",
    "first_of_each",
    "has_network",
    "keys",
    "knows_most",
    "read",
    "recognises",
    "renamed",
    "subset_entries",
]

SOURCE = "sd-scripts TOML"
DATA_SOURCE = "sd-scripts dataset file"
NETWORK = ("network_module", "network_dim")


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table has keys that only sd-scripts has."""
    entries, _, _ = file_entries(content)
    marks = keys.KNOWN - keys.SHARED
    return any(name in marks or name.startswith(tuple(f"{each}." for each in LISTS)) for name in entries)


def has_network(content: Mapping[str, Any], names: tuple[str, ...] = NETWORK) -> bool:
    """Whether a table names a network as sd-scripts and its relatives do, at any level."""
    entries, _, _ = file_entries(content)
    return any(name in entries for name in names)


def knows_most(content: Mapping[str, Any]) -> bool:
    """Whether at least half of a table's keys are sd-scripts'."""
    entries, _, _ = file_entries(content)
    return bool(entries) and 2 * sum(name in keys.KNOWN for name in entries) >= len(entries)


def read(content: Mapping[str, Any]) -> Recipe:
    """Converts a file for --config_file or --dataset_config, or both in one."""
    entries, repeated, is_data_only = file_entries(content)
    book = Ledger(entries, repeated, has_defaults=not is_data_only)
    carry(book)
    return book.recipe(DATA_SOURCE if is_data_only else SOURCE)


def carry(
    book: Ledger, ignored: Mapping[str, str] | None = None, missing: Mapping[str, tuple[Any, ...]] | None = None
) -> None:
    """Accounts for every key of a file with sd-scripts' names.

    Args:
        ignored: further keys, of a relative of that trainer, as in `keys.IGNORED`.
        missing: likewise, as in `keys.MISSING`.
    """
    carry_network(book)
    carry_learning(book)
    carry_objective(book)
    carry_saving(book)
    carry_data(book)
    carry_own(book)
    book.ignore(tuple(name for name in keys.CARRIED if not book.has(name)), "not set")
    book.account_for_rest({**keys.IGNORED, **(ignored or {})}, {**keys.MISSING, **(missing or {})})
