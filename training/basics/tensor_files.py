"""Reading files of tensors."""

from pathlib import Path

import torch
from safetensors.torch import load_file


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, copied: a file that stayed mapped could not be deleted on Windows.

    Raises:
        OSError, SafetensorError: it cannot be read.
    """
    return {name: tensor.clone() for name, tensor in load_file(path).items()}
