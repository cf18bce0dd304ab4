"""Folders of the host."""

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
"""The kind under which extra_model_paths.yaml may name folders of pictures."""
ROOTS_VARIABLE = "LORA_KILN_ROOTS"
"""Folders outside ComfyUI's input folder that may be read, as the person who runs the server sets them."""
WRITE_VARIABLE = "LORA_KILN_WRITE"
"""1 = captions may be written in the folders outside too."""
CACHE_VARIABLE = "LORA_KILN_CACHE_GB"
"""Gigabytes that latents and text embeddings may take on disk; 0 = none are kept there."""
CACHE_GB = 20.0


def data_roots() -> list[Path]:
    """Where data may be read from: the host's input folder, then what its owner allows beside it."""
    named = [entry for entry in os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep) if entry.strip()]
    listed, _ = folder_paths.folder_names_and_paths.get(DATASETS, ([], set()))
    return [Path(os.path.abspath(root)) for root in (folder_paths.get_input_directory(), *named, *listed)]


def data_path(name: object, field: str, subject: str) -> Path:
    """A file or folder by its path under the input folder, or by its absolute path under an allowed root.

    Raises:
        InputError: outside the allowed roots, or no name that is safe.
    """
    try:
        return resolve(name, data_roots())
    except PathRefused as error:
        outside = f" Move it there, or let the person who runs the server set {ROOTS_VARIABLE}."
        advice = outside if isinstance(error, OutsideRefused) else ""
        raise InputError(subject, [f"{field} is {name!r:.200}, {error}{advice}"]) from None


def resolve_folder(name: object, field: str) -> Path:
    """A folder of pictures, as `data_path`.

    Raises:
        InputError: also where it is not there.
    """
    path = data_path(name, field, "Load Dataset")
    if not path.is_dir():
        problem = (
            f"{field} is {name!r}, but there is no such folder here. Make {path} and put the pictures into it (Add "
            "pictures on the node does both), or choose another folder (R on the canvas shows new ones in the list)."
        )
        raise InputError("Load Dataset", [problem])
    return path


def input_folder() -> Path:
    """The host's input folder."""
    return data_roots()[0]


def largest_upload() -> int:
    """Bytes of a file that the host takes from the page."""
    return round(args.max_upload_size * 1024 * 1024)


def leaves_roots(path: Path) -> bool:
    """Whether a path leads out of the allowed roots once its links are followed."""
    return leads_out(path, data_roots())


def may_write(path: Path) -> bool:
    """Whether a workflow may write a file: inside the host's input folder, elsewhere only if LORA_KILN_WRITE is 1.

    Workflows come from strangers; LORA_KILN_ROOTS alone lets them read. Links count by where they lead.
    """
    is_allowed = os.environ.get(WRITE_VARIABLE, "").strip() == "1"
    return not leads_out(path.parent, data_roots() if is_allowed else data_roots()[:1])


def runs_root() -> Path:
    """Where runs lie: lora_kiln in the host's output folder."""
    return Path(folder_paths.get_output_directory()) / "lora_kiln"


def is_picture_there(place: Mapping[str, str]) -> bool:
    """Whether a picture that a node told the page of is still in the host's folder."""
    folder = folder_paths.get_directory_by_type(place["type"])
    return folder is not None and os.path.isfile(os.path.join(folder, place["subfolder"], place["filename"]))


def output_place(path: Path) -> tuple[str, str]:
    """(file name, folder below the output folder) of an output file, as the host's /view takes them."""
    return path.name, path.parent.relative_to(folder_paths.get_output_directory()).as_posix()


def thumbnail_address(path: Path | None) -> str | None:
    """Where the server shows a small form of a picture of the input folder; None for others."""
    root = data_roots()[0]
    if path is None or not Path(os.path.abspath(path)).is_relative_to(root):
        return None
    place = Path(os.path.abspath(path)).relative_to(root)
    return "/kiln/thumbnail?" + urlencode({"folder": place.parent.as_posix(), "name": place.name})


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
