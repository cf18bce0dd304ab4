"""The host's folders of LoRAs."""

from pathlib import Path

import folder_paths

from ..basics.errors import InputError

KIND = "loras"


def lora_folder() -> Path:
    """Where finished LoRAs go: the first of the folders."""
    return Path(folder_paths.get_folder_paths(KIND)[0])


def lora_files() -> list[str]:
    """The LoRA files in the folders that can be read here, as the host names them."""
    return [name for name in folder_paths.get_filename_list(KIND) if name.endswith(".safetensors")]


def lora_path(name: str, field: str, subject: str) -> Path:
    """A LoRA file by its name in `lora_files`.

    Args:
        field, subject: the input and the node, for the message.

    Raises:
        InputError: not in the list, and so outside the folders, of another kind, or not there.
    """
    found = folder_paths.get_full_path(KIND, name) if name in lora_files() else None
    if found is None:
        problem = (
            f"{field} is {name!r}, which is no .safetensors file in {lora_folder()}: put it there, or choose another "
            "(press R on the canvas to see new files in the list)."
        )
        raise InputError(subject, [problem])
    return Path(found)


def lora_places() -> dict[str, Path]:
    """Where each of `lora_files` lies; without links that lead nowhere."""
    found = {name: folder_paths.get_full_path(KIND, name) for name in lora_files()}
    return {name: Path(path) for name, path in found.items() if path is not None}
