"""Tensors in lists, tuples, dicts and dataclasses: out of their structure and back into it."""

import dataclasses
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in a structure, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [tensor for part in _parts(tree) for tensor in tensors_of(part)]


def with_tensors(tree: Tree, tensors: Iterable[Tensor]) -> Tree:
    """The structure with other tensors, as many as `tensors_of` gives and in their order; all else is shared."""
    return _filled(tree, iter(tensors))


def form_of(tree: Any) -> Hashable:
    """All about a structure but its tensors' content: shapes, types, devices, plain values.

    Raises:
        TypeError: something in it is neither a tensor, a plain value nor a container of those.
    """
    if isinstance(tree, Tensor):
        return "tensor", tuple(tree.shape), tree.dtype, tree.device
    if _is_container(tree):
        names = tuple(tree) if isinstance(tree, dict) else ()
        return type(tree), names, tuple(form_of(part) for part in _parts(tree))
    if tree is None or isinstance(tree, bool | int | float | str | torch.dtype | torch.device):
        return tree
    raise TypeError(f"a {type(tree).__name__} is no plain value")


def _is_container(tree: Any) -> bool:
    return isinstance(tree, dict | list | tuple) or (dataclasses.is_dataclass(tree) and not isinstance(tree, type))


def _parts(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        yield from tree.values()
    elif isinstance(tree, list | tuple):
        yield from tree
    elif _is_container(tree):
        yield from (getattr(tree, field.name) for field in dataclasses.fields(tree))


def _filled(tree: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, dict):
        return {key: _filled(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_filled(value, tensors) for value in tree)
    if _is_container(tree):
        return type(tree)(**{f.name: _filled(getattr(tree, f.name), tensors) for f in dataclasses.fields(tree)})
    return tree
