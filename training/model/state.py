"""Tensors under numbered names: out of what learns and back into it."""

from collections.abc import Iterable, Mapping

import torch


class Damaged(ValueError):
    """A checkpoint that cannot be used, and why."""


def numbered(prefix: str, tensors: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under names, for `State.tensors`."""
    return {f"{prefix}.{number}": tensor for number, tensor in enumerate(tensors)}


def put_into(places: Iterable[torch.Tensor], prefix: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies what `numbered` named back into its places.

    Raises:
        Damaged: there is no such tensor, or it has another shape: it is of another run.
    """
    with torch.no_grad():
        for number, place in enumerate(places):
            found = tensors.get(f"{prefix}.{number}")
            if found is None or found.shape != place.shape:
                raise Damaged(f"the checkpoint's {prefix}.{number} does not fit this recipe")
            place.copy_(found)
