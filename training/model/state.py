"""Tensors of a checkpoint under numbered names."""

from collections.abc import Iterable, Mapping

import torch


class Damaged(ValueError):
    """A checkpoint cannot be used; the message says why."""


def numbered(prefix: str, tensors: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by name: prefix.0, prefix.1 and so on."""
    return {f"{prefix}.{number}": tensor for number, tensor in enumerate(tensors)}


def copy_into(targets: Iterable[torch.Tensor], prefix: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors named by `numbered` into others.

    Raises:
        Damaged: a tensor is missing or has another shape: the checkpoint is of another recipe.
    """
    with torch.no_grad():
        for number, target in enumerate(targets):
            found = tensors.get(f"{prefix}.{number}")
            if found is None or found.shape != target.shape:
                raise Damaged(f"the checkpoint's {prefix}.{number} does not fit this recipe")
            target.copy_(found)
