"""The tables of a file -> entries by the name of the command-line argument."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..ledger import Entry, is_unset, leaves
from ..techniques import unquoted

LISTS = ("network_args", "optimizer_args")
"""lists of name=value; each becomes an entry of its own"""
RENAMED: dict[str, str] = {
    "batch_size": "train_batch_size",
    "num_repeats": "dataset_repeats",
    "caption_extention": "caption_extension",
}
"""names in a dataset's tables -> names as arguments"""


def file_entries(content: Mapping[str, Any]) -> tuple[dict[str, Entry], list[tuple[str, Entry]], bool]:
    """(entries by name, further entries of the same names, whether the file describes pictures alone)."""
    tables = content.get("datasets")
    has_datasets = isinstance(tables, list) and all(isinstance(each, dict) for each in tables)
    found: list[tuple[str, Entry]] = []
    if isinstance(tables, list) and has_datasets:
        found += _dataset_entries(tables)
    general = content.get("general")
    if has_datasets and isinstance(general, dict):
        found += [(renamed(key), Entry(f"general.{key}", value)) for key, value in general.items()]
    is_data_only = has_datasets and not set(content) - {"datasets", "general"}
    rest = {key: value for key, value in content.items() if not (has_datasets and key in ("datasets", "general"))}
    for path, value in leaves(rest):  # the trainer ignores the tables' names
        name = path.rsplit(".", 1)[-1]
        made = argument_entries(name, path, value) if name in LISTS else {name: Entry(path, value)}
        found += made.items()
    return *first_of_each(found), is_data_only


def first_of_each(found: Iterable[tuple[str, Entry]]) -> tuple[dict[str, Entry], list[tuple[str, Entry]]]:
    """(the first entry of each name, the further ones)."""
    entries: dict[str, Entry] = {}
    repeated = []
    for name, entry in found:
        if name in entries:
            repeated.append((name, entry))
        else:
            entries[name] = entry
    return entries, repeated


def renamed(key: str) -> str:
    """The name as an argument of a name in a dataset's table."""
    return RENAMED.get(key, key)


def subset_entries(subset: Mapping[str, Any], path: str) -> Iterator[tuple[str, Entry]]:
    """The keys of a folder's table; those of regularisation pictures with a prefix."""
    prefix = "regularisation." if subset.get("is_reg") is True else ""
    for key, value in subset.items():
        yield prefix + renamed(key), Entry(f"{path}.{key}", value)


def _dataset_entries(tables: list[dict[str, Any]]) -> Iterator[tuple[str, Entry]]:
    """The keys of each subset, then of its dataset."""
    for number, table in enumerate(tables):
        subsets = table.get("subsets")
        is_list = isinstance(subsets, list) and all(isinstance(each, dict) for each in subsets)
        for inner, subset in enumerate(subsets if isinstance(subsets, list) and is_list else []):
            yield from subset_entries(subset, f"datasets[{number}].subsets[{inner}]")
        for key, value in table.items():
            if not (key == "subsets" and is_list):
                yield renamed(key), Entry(f"datasets[{number}].{key}", value)


def argument_entries(name: str, path: str, value: Any) -> dict[str, Entry]:
    """`["a=1", "b=2"]` or "a=1 b=2" -> entries name.a, name.b; other values stay one entry."""
    words = value.split() if isinstance(value, str) else value
    if is_unset(value) or not isinstance(words, list) or not words:
        return {name: Entry(path, value)}
    if not all(isinstance(word, str) and "=" in word for word in words):
        return {name: Entry(path, value)}
    pairs = [[part.strip() for part in word.split("=", 1)] for word in words]
    return {f"{name}.{key}": Entry(f"{path}.{key}", unquoted(given)) for key, given in pairs}
