"""Folders that the pack may read and write: the host's, and those its owner adds."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode

import folder_paths
from comfy.cli_args import args

from ..basics.errors import InputError, raise_if_any
from ..basics.paths import OutsideRefused, PathRefused, leads_out, resolve

DATASETS = "lora_kiln_datasets"
"""Key of extra_model_paths.yaml that may list dataset folders."""
ROOTS_VARIABLE = "LORA_KILN_ROOTS"
"""Environment variable set by the server's owner: folders outside ComfyUI's input folder that may be read."""
WRITE_VARIABLE = "LORA_KILN_WRITE"
"""Environment variable; 1 = captions may be written in those folders too."""
CACHE_VARIABLE = "LORA_KILN_CACHE_GB"
"""Environment variable: gigabytes on disk for cached latents and text embeddings; 0 = no cache on disk."""
CACHE_GB = 20.0
"""Its default."""


def data_roots() -> list[Path]:
    """Folders that data may be read from: the host's input folder first, then those its owner allows."""
    listed, _ = folder_paths.folder_names_and_paths.get(DATASETS, ([], set()))
    return [Path(os.path.abspath(root)) for root in (folder_paths.get_input_directory(), *_named_roots(), *listed)]


def wrong_roots() -> str:
    """A sentence about what LORA_KILN_ROOTS and extra_model_paths.yaml name that is no folder; empty: there is none."""
    listed, _ = folder_paths.folder_names_and_paths.get(DATASETS, ([], set()))
    entries = [(ROOTS_VARIABLE, each) for each in _named_roots()] + [(DATASETS, each) for each in listed]
    wrong = [
        f"{place} names {entry!r:.200}, which is no folder here" for place, entry in entries if not os.path.isdir(entry)
    ]
    if not wrong:
        return ""
    advice = f"Write whole paths, with {os.pathsep!r} between two in {ROOTS_VARIABLE}, and restart ComfyUI."
    return f"{', '.join(wrong)}: there is no such folder here. {advice}"


def _named_roots() -> list[str]:
    entries = (entry.strip() for entry in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep))
    return [os.path.expanduser(entry) for entry in entries if entry]


def data_path(name: object, field: str, subject: str) -> Path:
    """A file or folder, by its path below the input folder or its absolute path below an allowed root.

    Raises:
        InputError: it is outside the allowed roots, or its name is unsafe.
    """
    try:
        return resolve(name, data_roots())
    except PathRefused as error:
        outside = f" Move it there, or let the person who runs the server set {ROOTS_VARIABLE}."
        advice = f"{outside} {wrong_roots()}".rstrip() if isinstance(error, OutsideRefused) else ""
        raise InputError(subject, [f"{field} is {name!r:.200}, {error}{advice}"]) from None


def resolve_folder(name: object, field: str) -> Path:
    """A folder of pictures, by a name as in `data_path`.

    Raises:
        InputError: also if it does not exist.
    """
    path = data_path(name, field, "Load Dataset")
    if not path.is_dir():
        problem = (
            f"{field} is {name!r}, but there is no such folder here. Make {path} and put the pictures into it (Add "
            "pictures on the node does both), or choose another folder (R on the canvas shows new ones in the list)."
        )
        raise InputError("Load Dataset", [f"{problem} {wrong_roots()}".rstrip()])
    return path


def input_folder() -> Path:
    """The host's input folder."""
    return data_roots()[0]


def largest_upload() -> int:
    """The host's size limit for an uploaded file, in bytes."""
    return round(args.max_upload_size * 1024 * 1024)


def leaves_roots(path: Path) -> bool:
    """Whether a path, with its links resolved, is outside the allowed roots."""
    return leads_out(path, data_roots())


def may_write(path: Path) -> bool:
    """Whether a workflow may write a file: inside the host's input folder, elsewhere only if LORA_KILN_WRITE is 1.

    Workflows come from strangers, so LORA_KILN_ROOTS alone only allows reading. Links are resolved.
    """
    is_allowed = os.environ.get(WRITE_VARIABLE, "").strip() == "1"
    return not leads_out(path.parent, data_roots() if is_allowed else data_roots()[:1])


def runs_root() -> Path:
    """The folder of run folders: lora_kiln in the host's output folder."""
    return Path(folder_paths.get_output_directory()) / "lora_kiln"


def is_picture_there(image: Mapping[str, str]) -> bool:
    """Whether a picture that a node has shown still exists.

    Args:
        image: its entry in the node's UI output: type, subfolder and filename.
    """
    folder = folder_paths.get_directory_by_type(image["type"])
    return folder is not None and os.path.isfile(os.path.join(folder, image["subfolder"], image["filename"]))


def output_location(path: Path) -> tuple[str, str]:
    """(file name, subfolder) of a file in the output folder, as the host's /view route takes them."""
    return path.name, path.parent.relative_to(folder_paths.get_output_directory()).as_posix()


def thumbnail_address(path: Path | None) -> str | None:
    """URL path of the thumbnail of a picture in the input folder; None for other pictures."""
    root = data_roots()[0]
    if path is None or not Path(os.path.abspath(path)).is_relative_to(root):
        return None
    inside = Path(os.path.abspath(path)).relative_to(root)
    return "/kiln/thumbnail?" + urlencode({"folder": inside.parent.as_posix(), "name": inside.name})


def cache_folder() -> Path:
    """The cache's folder, in the part of the host's user folder that is never served to a browser."""
    return Path(folder_paths.get_system_user_directory("lora_kiln"))


def cache_limit() -> int:
    """The cache's size limit in bytes, from LORA_KILN_CACHE_GB; 0 = no cache.

    Raises:
        InputError: the variable is not a number of gigabytes.
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
    """The host's folders for one kind of model."""
    return [Path(path) for path in folder_paths.get_folder_paths(kind)]


def register_model_folder(kind: str) -> None:
    """Adds models/<kind> to the host's model folders."""
    folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
