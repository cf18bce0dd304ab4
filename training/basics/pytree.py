"""Tensors in nested lists, tuples, dicts and registered dataclasses, by torch's own pytree."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

Tree = TypeVar("Tree")
Class = TypeVar("Class", bound=type)


def pytree_node(cls: Class) -> Class:
    """Class decorator: torch's pytree then looks for tensors in the fields of this dataclass."""
    names = [field.name for field in dataclasses.fields(cls)]
    _pytree.register_pytree_node(
        cls, lambda node: ([getattr(node, name) for name in names], None), lambda values, _: cls(*values)
    )
    return cls


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors in a tree, in order: of dicts by insertion, of dataclasses by field."""
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """The tree with each tensor replaced by the function's result; all other leaves are shared."""
    return _pytree.tree_map_only(Tensor, function, tree)


def with_tensors(tree: Tree, tensors: Iterable[Tensor]) -> Tree:
    """The tree with other tensors, as many as `tensors_of` gives and in their order; all other leaves are shared."""
    following = iter(tensors)
    return map_tensors(lambda _: next(following), tree)


def form_of(tree: Any) -> Hashable:
    """A key for all of a tree but its tensors' content: containers, shapes, dtypes, devices, plain values.

    Raises:
        TypeError: a leaf is neither a tensor nor a plain value.
    """
    leaves, structure = _pytree.tree_flatten(tree)
    return _Form(tuple(map(_form_of_leaf, leaves)), structure)


@dataclasses.dataclass(frozen=True)
class _Form:
    leaves: tuple[Hashable, ...]
    structure: _pytree.TreeSpec = dataclasses.field(hash=False)
    """compared, but not hashable in every version of torch"""


def _form_of_leaf(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return "tensor", tuple(leaf.shape), leaf.dtype, leaf.device
    if leaf is None or isinstance(leaf, bool | int | float | str | torch.dtype | torch.device):
        return leaf
    raise TypeError(f"a {type(leaf).__name__} is no plain value")
