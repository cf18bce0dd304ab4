"""Tensors of a checkpoint under numbered names."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

from ..adapters.flat import FlatParameters

NUMBERED = re.compile(r"(ema|optimizer\.state)\.(\d+)((?:\.\w+)?)")
"""Names of the tensors that belong to the averaged, or optimized, parameter of a number."""


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


def with_flats(
    tensors: Mapping[str, torch.Tensor], flats: Sequence[FlatParameters], kinds: Collection[str]
) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors, with one for each flat parameter where earlier versions had one for each of its members.

    Args:
        kinds: "ema", "optimizer.state": what is to have the form of the flat parameters.
    """
    shapes = [parameter.shape for flat in flats for parameter in flat.parameters]
    rest, found = dict(tensors), defaultdict[tuple[str, str], dict[int, torch.Tensor]](dict)
    for name, tensor in tensors.items():
        match = NUMBERED.fullmatch(name)
        if match and match[1] in kinds:
            found[match[1], match[3]][int(match[2])] = tensor
    for (kind, key), by_number in found.items():
        if [by_number[number].shape if number in by_number else None for number in range(len(shapes))] != shapes:
            continue
        for number in by_number:
            del rest[f"{kind}.{number}{key}"]
        ordered = iter(tensor for _, tensor in sorted(by_number.items()))
        joined = [flat.joined([next(ordered) for _ in flat.parameters]) for flat in flats]
        rest |= {f"{kind}.{number}{key}": tensor for number, tensor in enumerate([*joined, *ordered])}
    return rest
