"""The host's LoRA folders."""

from pathlib import Path

import folder_paths

from ..basics.errors import InputError

KIND = "loras"
ENDINGS = (".safetensors", ".sft")
"""Of files in safetensors' format, as the host's loader knows them; in any case."""


def lora_folder() -> Path:
    """The folder that finished LoRAs are written to: the first of the host's LoRA folders."""
    return Path(folder_paths.get_folder_paths(KIND)[0])


def lora_files() -> list[str]:
    """The host's names of all files in safetensors' format in its LoRA folders."""
    return [name for name in folder_paths.get_filename_list(KIND) if name.lower().endswith(ENDINGS)]


def lora_path(name: str, field: str, subject: str) -> Path:
    """The path of a LoRA file by its name in `lora_files`.

    Args:
        field, subject: names of the input and the node, for the error message.

    Raises:
        InputError: the name is not in the list.
    """
    found = folder_paths.get_full_path(KIND, name) if name in lora_files() else None
    if found is None:
        problem = (
            f"{field} is {name!r}, which is no .safetensors file in {lora_folder()}: put it there, or choose another "
            "(press R on the canvas to see new files in the list)."
        )
        raise InputError(subject, [problem])
    return Path(found)


def lora_paths() -> dict[str, Path]:
    """The path of each of `lora_files`; broken links are left out."""
    found = {name: folder_paths.get_full_path(KIND, name) for name in lora_files()}
    return {name: Path(path) for name, path in found.items() if path is not None}
