"""Folders of the host."""

import math
import os
from pathlib import Path

import folder_paths

from ..problems import raise_if_any

ROOTS_VARIABLE = "LORA_KILN_ROOTS"
"""Folders outside ComfyUI's input folder that may be read, as the person who runs the server sets them."""
WRITE_VARIABLE = "LORA_KILN_WRITE"
"""1 = captions may be written in those folders too."""
CACHE_VARIABLE = "LORA_KILN_CACHE_GB"
"""Gigabytes that latents and text embeddings may take on disk; 0 = none are kept there."""
CACHE_GB = 20.0


def data_roots() -> list[Path]:
    """Where pictures may be read from: the host's input folder, then what LORA_KILN_ROOTS allows."""
    allowed = [entry for entry in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if entry.strip()]
    return [Path(os.path.abspath(root)) for root in (folder_paths.get_input_directory(), *allowed)]


def resolve_folder(name: str, field: str) -> Path:
    """A folder by its path under the input folder, or by its absolute path under an allowed root.

    Raises:
        InputError: outside the allowed roots, or not there.
    """
    roots = data_roots()
    path = Path(os.path.abspath(roots[0] / name))
    problems = []
    if not any(path.is_relative_to(root) for root in roots):
        problems.append(
            f"{field} is {name!r}, which lies outside the folders that may be read: ComfyUI's input folder"
            + (f" and {', '.join(map(str, roots[1:]))}" if roots[1:] else "")
            + f". Move the pictures there, or let the person who runs the server set {ROOTS_VARIABLE}."
        )
    elif not path.is_dir():
        problems.append(
            f"{field} is {name!r}, but there is no such folder here. Make {path} and put the pictures into it, "
            "or choose another folder (press R on the canvas to see new ones in the list)."
        )
    raise_if_any("Load Dataset", problems)
    return path


def may_write(path: Path) -> bool:
    """Whether a workflow may write a file: inside the host's input folder, elsewhere only if LORA_KILN_WRITE is 1.

    Workflows come from strangers; LORA_KILN_ROOTS alone lets them read.
    """
    inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder_paths.get_input_directory()))
    return inside or os.environ.get(WRITE_VARIABLE, "").strip() == "1"


def cache_folder() -> Path:
    """Where the cache lies: in the host's user folder, in a part that it never serves to a browser."""
    return Path(folder_paths.get_system_user_directory("lora_kiln"))


def cache_limit() -> int:
    """Bytes that the cache may take, as LORA_KILN_CACHE_GB says; 0 = no cache.

    Raises:
        InputError: it is no number.
    """
    text = os.environ.get(CACHE_VARIABLE, "").strip()
    try:
        gigabytes = float(text) if text else CACHE_GB
    except ValueError:
        gigabytes = math.nan
    if not 0.0 <= gigabytes < math.inf:
        problem = f"{CACHE_VARIABLE} is {text!r}; it must be a number of gigabytes, 0 for no cache."
        raise_if_any("The cache", [problem])
    return int(gigabytes * 1e9)


def model_folders(kind: str) -> list[Path]:
    """The host's folders of one kind of model."""
    return [Path(path) for path in folder_paths.get_folder_paths(kind)]


def register_model_folder(kind: str) -> None:
    """Adds models/<kind> to the host's list of model folders."""
    folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
