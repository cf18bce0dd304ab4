"""Reading other trainers' recipes, and the settings in a LoRA's metadata.

`read` finds the file's row in the table of `dialects`. Each dialect has a file of its own, which accounts for every key
in a `Ledger`: carried over, without effect here, or lost. No key is dropped silently.
"""

from collections.abc import Iterable, Mapping

from ..basics.errors import InputError
from . import lora_metadata, sd_scripts
from .changes import parse_changes
from .dialects import dialect_of
from .parsing import LARGEST, parse
from .recipe import Recipe

__all__ = ["LARGEST", "Recipe", "parse_changes", "read", "read_metadata"]


def read(text: str, name_hint: str = "") -> Recipe:
    """A recipe from the text of a file.

    Args:
        name_hint: the file's name, for messages; an empty .toml file is sd-scripts' defaults.

    Raises:
        InputError: an unknown format, too large or too deep, or values of the wrong type.
    """
    subject = f"The recipe {name_hint}".strip()
    try:
        kind, content = parse(text)
        if not content and name_hint.lower().endswith(".toml"):
            return sd_scripts.read(content)
        return dialect_of(kind, content).read(content)
    except InputError as error:
        raise InputError(subject, error.problems) from None


def read_metadata(metadata: Mapping[str, str], layers: Iterable[str] | None = None, name_hint: str = "") -> Recipe:
    """A recipe from a LoRA file's metadata.

    Args:
        layers: names of the file's tensors, from which it follows whether the text encoders were trained.
        name_hint: the file's name, for messages.

    Raises:
        InputError: the metadata has no training settings, or values of the wrong type.
    """
    subject = f"The LoRA {name_hint}".strip()
    if not any(key.startswith("ss_") for key in metadata):
        problem = "its metadata says nothing of how it was trained (no key begins with ss_); choose another file."
        raise InputError(subject, [problem])
    try:
        return lora_metadata.read(metadata, layers)
    except InputError as error:
        raise InputError(subject, error.problems) from None
