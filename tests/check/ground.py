"""The ground of `dev.py check`: a person's own ComfyUI in this process, and a folder that is removed afterwards."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environment import Problem
from host import import_pack

PREFIX = ".lora-kiln-check-"
PATIENCE = 10.0
"""seconds for which the removal of the folder is tried: a virus scanner may hold files in it"""


@dataclass(frozen=True)
class Ground:
    """Where the checks work.

    Args:
        comfyui: the folder of ComfyUI's main.py.
        output: ComfyUI's output folder.
        folder: a new folder on the same disk, removed afterwards.
    """

    comfyui: Path
    output: Path
    folder: Path

    @functools.cached_property
    def device(self) -> Any:
        """The torch device on which ComfyUI computes."""
        import comfy.model_management

        return comfy.model_management.get_torch_device()


@dataclass
class Removal:
    """Whether the folder of the checks is gone, told after the end of `ground`."""

    left: list[Path] = field(default_factory=list)
    """files in it that cannot be deleted"""


def find_comfyui(given: str | None, pack: Path) -> Path:
    """The folder of ComfyUI's main.py: the given one, or the one in whose custom_nodes the pack lies.

    Raises:
        Problem: there is none.
    """
    if given is not None:
        folder = Path(given).expanduser().absolute()
    elif pack.parent.name == "custom_nodes":
        folder = pack.parent.parent
    else:
        raise Problem("This clone does not lie in ComfyUI's custom_nodes folder: name ComfyUI's folder with --comfyui.")
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise Problem(
            f"{folder} is not ComfyUI's folder: it has no main.py and comfy. Name the one that has, with --comfyui."
        )
    return folder


@contextlib.contextmanager
def ground(comfyui: Path, arguments: Sequence[str], pack: Path) -> Iterator[tuple[Ground, Removal]]:
    """Takes ComfyUI into this process as its main.py would, with a base directory that is removed at the end.

    Args:
        arguments: those that the person starts ComfyUI with.
        pack: this clone.

    Raises:
        Problem: this Python has no torch, or the folder cannot be written.
    """
    if importlib.util.find_spec("torch") is None:
        raise Problem(f"{sys.executable} has no torch. Use the Python that runs ComfyUI: see docs/platforms.md.")
    args = _host_arguments(comfyui, arguments, pack)
    output = Path(args.output_directory or Path(args.base_directory or comfyui) / "output").absolute()
    there = next(folder for folder in (output, *output.parents) if folder.is_dir())
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=there))
    except OSError as error:
        raise Problem(f"ComfyUI's output folder {there} cannot be written: {error.strerror or error}.") from error
    removal = Removal()
    try:
        args.base_directory = str(folder)  # before folder_paths is imported, which makes folders below it
        import utils.extra_config  # noqa: F401  (first, as main.py does: some hosts' hides it behind comfy/utils.py)

        import_pack()
        yield Ground(comfyui, output, folder), removal
    finally:
        removal.left += _remove(folder)


def _host_arguments(comfyui: Path, arguments: Sequence[str], pack: Path) -> Any:
    """ComfyUI's own arguments, and what its main.py does before torch is imported."""
    # The clone's nodes/ would hide ComfyUI's nodes.py.
    sys.path[:] = [str(comfyui), *(path for path in sys.path if Path(path or ".").resolve() != pack.resolve())]
    sys.dont_write_bytecode = True
    sys.argv = [str(comfyui / "main.py"), *arguments]
    import comfy.options

    comfy.options.enable_args_parsing()
    from comfy.cli_args import args

    if args.cuda_device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = str(args.cuda_device)
    os.environ.setdefault("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL", "1")
    import cuda_malloc  # noqa: F401  (chooses CUDA's allocator)

    args.cpu = args.cpu or args.directml is None and not _has_accelerator()
    return args


def _has_accelerator() -> bool:
    import torch

    return any(
        module is not None and module.is_available()
        for module in (torch.cuda, torch.backends.mps, *(getattr(torch, name, None) for name in ("xpu", "npu", "mlu")))
    )


def _remove(folder: Path) -> list[Path]:
    """Deletes a folder with patience; what cannot be deleted is given back."""
    deadline = time.monotonic() + PATIENCE
    while True:
        shutil.rmtree(long_form(folder), ignore_errors=True)
        if not folder.exists() or time.monotonic() > deadline:
            return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
        time.sleep(0.2)


def long_form(folder: Path) -> str:
    r"""The folder's path for long paths in it, which Windows takes after \\?\ alone."""
    return f"\\\\?\\{folder}" if os.name == "nt" and not str(folder).startswith("\\\\") else str(folder)
