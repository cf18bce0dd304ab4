"""derrian-distro/LoRA_Easy_Training_Scripts: the TOML in which its window saves settings for sd-scripts.

Each part of the window is a table with `args`, the trainer's arguments, and `dataset_args`, those of the pictures;
`subsets` are the folders. See main_ui_files/ and the backend's utils/validation.py of that project, 2026.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from . import sd_scripts
from .ledger import Entry, Ledger, is_off, to_number
from .recipe import Recipe
from .sd_scripts import keys

SOURCE = "LoRA_Easy_Training_Scripts TOML"
ARGUMENTS, OF_PICTURES = "args", "dataset_args"
LISTS = (*sd_scripts.LISTS, "lr_scheduler_args")
SCHEDULERS = {"CosineAnnealingWarmRestarts": "cosine_with_restarts", "RexAnnealingWarmRestarts": "rex"}
"""classes of its own in lr_scheduler_type -> their names elsewhere"""

IGNORED = {
    "name": "a name for the folder's settings",
    "regularisation.name": "a name for the folder's settings",
    "easy_name": "a name for the window",
    "sdxl": keys.FAMILY,
    **dict.fromkeys(("save_toml", "save_toml_location", "tag_occurrence", "tag_file_location"), keys.OUTPUT),
}
MISSING = {
    "lr_scheduler_args": ("further settings of the scheduler",),
    **dict.fromkeys(
        ("token_string", "init_word", "num_vectors_per_token"), ("of a textual inversion, which is not trained here",)
    ),
}


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a table holds the window's parts or folders."""
    subsets = content.get("subsets")
    has_subsets = isinstance(subsets, list) and bool(subsets) and all(isinstance(each, dict) for each in subsets)
    return has_subsets or any(
        isinstance(table, dict) and any(isinstance(table.get(part), dict) for part in (ARGUMENTS, OF_PICTURES))
        for table in content.values()
    )


def read(content: Mapping[str, Any]) -> Recipe:
    """Converts the window's settings."""
    entries, repeated = sd_scripts.first_of_each(_found(content))
    _network(entries)
    replaced = _schedule(entries)
    book = Ledger(entries, repeated)
    if replaced:
        book.leave(replaced, "lr_scheduler_type counts")
    for name, why in IGNORED.items():
        book.ignore(name, why)
    if book.text("train_mode", "lora") == "lora":
        book.ignore("train_mode", "as here")
    else:
        book.miss("train_mode", "something else than a LoRA would have been trained")
    for name in book.names("lr_scheduler_args."):
        book.miss(name, *MISSING["lr_scheduler_args"])
    sd_scripts.carry(book, IGNORED, MISSING)
    return book.recipe(SOURCE)


def _found(content: Mapping[str, Any]) -> Iterator[tuple[str, Entry]]:
    """Every key by the name of its argument: of the folders, then of the pictures, then of the trainer."""
    rest = dict(content)
    subsets = rest.get("subsets")
    if isinstance(subsets, list) and all(isinstance(each, dict) for each in subsets):
        for number, subset in enumerate(rest.pop("subsets")):
            yield from sd_scripts.subset_entries(subset, f"subsets[{number}]")
    for name, table in rest.items():
        if not isinstance(table, dict):
            yield name, Entry(name, table)
            continue
        for part, inner in table.items():
            path = f"{name}.{part}"
            if part == OF_PICTURES and isinstance(inner, dict):
                yield from ((sd_scripts.renamed(key), Entry(f"{path}.{key}", value)) for key, value in inner.items())
            elif part == ARGUMENTS and isinstance(inner, dict):
                for key, value in inner.items():
                    yield from _argument(key, f"{path}.{key}", value)
            else:
                yield part, Entry(path, inner)


def _argument(key: str, path: str, value: Any) -> Iterator[tuple[str, Entry]]:
    if key in LISTS and isinstance(value, dict):
        yield from ((f"{key}.{name}", Entry(f"{path}.{name}", each)) for name, each in value.items())
    elif key in sd_scripts.LISTS:
        yield from sd_scripts.argument_entries(key, path, value).items()
    elif value or isinstance(value, bool):
        yield key, Entry(path, value)
    else:  # the trainer is not told of 0 and of empty text
        yield key, Entry(path, None, value)


def _network(entries: dict[str, Entry]) -> None:
    """The window names no network: it follows from the other settings."""
    if "network_module" in entries:
        return
    fa, module = entries.pop("fa", None), "networks.lora"
    if "guidance_scale" in entries:
        module = "networks.lora_flux"
    if fa is not None and not is_off(fa.value):
        entries["network_module"] = Entry(fa.path, "networks.lora_fa", fa.value)
        return
    for argument, of_it in (("algo", "lycoris.kohya"), ("unit", "networks.dylora")):
        if f"network_args.{argument}" in entries:
            module = of_it
    entries["network_module"] = Entry("network_module", module, is_made_up=True)


def _schedule(entries: dict[str, Entry]) -> Entry | None:
    """The warm-up is a share of the run; schedulers of its own are classes. Returns the scheduler that one replaces."""
    if "warmup_ratio" in entries and "lr_warmup_steps" not in entries:
        entries["lr_warmup_steps"] = entries.pop("warmup_ratio")
    own = entries.get("lr_scheduler_type")
    ours = SCHEDULERS.get(str(own.value).rsplit(".", 1)[-1]) if own else None
    if own is None or ours is None:
        return None
    del entries["lr_scheduler_type"]
    cycles = entries.get("lr_scheduler_num_cycles")
    if ours == "rex" and cycles is not None and (to_number(cycles.value) or 1) > 1:
        entries["lr_scheduler_args.cycles"] = entries.pop("lr_scheduler_num_cycles")
    replaced = entries.get("lr_scheduler")
    entries["lr_scheduler"] = Entry(own.path, ours, own.value)
    return replaced
