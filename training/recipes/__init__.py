"""Reading other trainers' recipes: sd-scripts' TOML, kohya_ss' JSON, ai-toolkit's YAML, a LoRA's metadata.

`read` recognises a format by its keys. Each format has a file of its own, which accounts for every key in a `Ledger`:
carried over, without effect here, or lost. No key is dropped silently.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ..basics.errors import InputError
from . import ai_toolkit, kohya_gui, lora_metadata, sd_scripts
from .changes import parse_changes
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
        return _reader(kind, content, name_hint)(content)
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


def _reader(kind: str, content: Mapping[str, Any], name_hint: str) -> Any:
    if isinstance(content.get("__metadata__"), dict):  # a safetensors header
        return lambda table: lora_metadata.read(table["__metadata__"], [key for key in table if key != "__metadata__"])
    if ai_toolkit.recognises(content):
        return ai_toolkit.read
    if lora_metadata.recognises(content):
        return lora_metadata.read
    if kind == "JSON" and "datasets" not in content and kohya_gui.recognises(content):
        return kohya_gui.read
    is_default = not content and name_hint.lower().endswith(".toml")
    if is_default or (kind != "YAML" and sd_scripts.recognises(content)):
        return sd_scripts.read
    problem = (
        f"this {kind} holds no key of a recipe that is known: an sd-scripts TOML, a kohya_ss JSON of its LoRA tab, an "
        "ai-toolkit job (YAML) or the metadata of a LoRA (ss_...)."
    )
    raise InputError("The recipe", [problem if content else "it is empty; choose a file that holds settings."])
