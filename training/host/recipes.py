"""Other trainers' recipes in the host's folders, and what the headers of its LoRA files say."""

import json
import os
from pathlib import Path
from typing import Any

import folder_paths

from ..folders import files_below
from ..problems import InputError, raise_if_any
from .places import data_roots

SUBJECT = "Import Recipe"
RECIPE_ENDINGS = (".toml", ".json", ".yaml", ".yml")
DEEPEST = 3
"""levels of folders that are looked into"""
LARGEST_HEADER = 100 * 2**20
"""bytes; as the safetensors library allows"""


def recipe_files() -> list[str]:
    """Files that may be recipes: by their paths under the input folder, else by absolute paths under allowed roots."""
    found = []
    for number, root in enumerate(data_roots()):
        paths = [path for path in files_below(root, DEEPEST) if path.suffix.lower() in RECIPE_ENDINGS]
        found += [str(path) if number else path.relative_to(root).as_posix() for path in paths]
    return found


def recipe_path(name: str) -> Path:
    """A recipe file by its name in `recipe_files`.

    Raises:
        InputError: outside the allowed roots, of another kind, or not there.
    """
    problems = []
    roots = data_roots()
    path = Path(os.path.abspath(roots[0] / name.replace("\0", "?")))
    if not any(path.is_relative_to(root) for root in roots):
        problems.append(f"file is {name!r}, which lies outside ComfyUI's input folder: put the recipe there.")
    elif path.suffix.lower() not in RECIPE_ENDINGS:
        problems.append(f"file is {name!r}; it must end with one of: {' '.join(RECIPE_ENDINGS)}.")
    elif not path.is_file():
        problems.append(f"file is {name!r}, but there is no such file: choose one of the list.")
    raise_if_any(SUBJECT, problems)
    return path


def read_recipe(name: str, largest: int) -> str:
    """The text of a recipe file.

    Args:
        largest: bytes.

    Raises:
        InputError: as `recipe_path`; too large, not readable, or not UTF-8.
    """
    path = recipe_path(name)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(SUBJECT, [f"{path.name} cannot be read: {error.strerror}."]) from error
    except UnicodeDecodeError:
        problem = f"{path.name} is no text in UTF-8: save it again with that encoding, or choose another file."
        raise InputError(SUBJECT, [problem]) from None
    if len(content) > largest:
        raise InputError(SUBJECT, [f"{path.name} is larger than {largest:,} bytes, far more than any recipe."])
    return text


def lora_files() -> list[str]:
    """The LoRA files that the host lists, with headers that can be read."""
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]


def lora_path(name: str) -> Path:
    """A LoRA file by its name in `lora_files`.

    Raises:
        InputError: not in the list.
    """
    found = folder_paths.get_full_path("loras", name) if name in lora_files() else None
    if found is None:
        raise InputError(SUBJECT, [f"file is {name!r}, which is no .safetensors file in models/loras: choose another."])
    return Path(found)


def lora_header(name: str) -> tuple[dict[str, str], list[str]]:
    """The metadata of a LoRA file and the names of its tensors; the tensors are not read.

    The format (safetensors): eight bytes, little-endian, say how long the header is; then JSON.

    Raises:
        InputError: as `lora_path`; no safetensors file.
    """
    path = lora_path(name)
    problem = f"{path.name} is no safetensors file, or is cut short: choose another file."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise InputError(SUBJECT, [problem])
            header: Any = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise InputError(SUBJECT, [f"{path.name} cannot be read: {error.strerror}."]) from error
    except (ValueError, RecursionError):
        raise InputError(SUBJECT, [problem]) from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict):
        raise InputError(SUBJECT, [problem])
    return {str(key): str(value) for key, value in metadata.items()}, [str(key) for key in header]
