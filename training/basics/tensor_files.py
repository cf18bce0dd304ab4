"""Reading files of tensors."""

import errno
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .disk_errors import OS_ERROR, told_by_library
from .files import patiently


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, copied: a file that stayed mapped could not be deleted on Windows.

    Raises:
        OSError: it is missing, or cannot be read.
        SafetensorError: it is no safetensors file.
    """
    return patiently(lambda: _load(path))


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except FileNotFoundError as error:  # the library says so of whatever it cannot open
        path.open("rb").close()
        raise OSError(errno.EBUSY, f"{path} could not be opened a moment ago") from error
    except (OSError, SafetensorError) as error:
        if OS_ERROR.search(str(error)):
            raise told_by_library(error) from error
        raise
