"""Tensors in structures."""

from dataclasses import dataclass

import pytest
import torch
from lora_kiln.training.basics.pytree import form_of, map_tensors, pytree_node, tensors_of, with_tensors


@pytree_node
@dataclass(frozen=True)
class Pair:
    first: torch.Tensor
    second: object = None


def tree(value: float = 0.0) -> dict:
    return {"a": [torch.full((2,), value), 3], "b": Pair(torch.full((1, 2), value), (torch.full((), value), "x"))}


def test_tensors_come_out_in_order_and_go_back() -> None:
    assert [tuple(t.shape) for t in tensors_of(tree())] == [(2,), (1, 2), ()]
    filled = with_tensors(tree(), tensors_of(tree(5.0)))
    assert all((t == 5.0).all() for t in tensors_of(filled)) and form_of(filled) == form_of(tree())
    assert filled["a"][1] == 3 and filled["b"].second[1] == "x"


def test_the_form_is_all_but_the_content() -> None:
    assert form_of(tree(1.0)) == form_of(tree(2.0))
    others = [
        {"a": tree()["a"]}, {**tree(), "a": [torch.zeros(3), 3]}, {**tree(), "a": [torch.zeros(2), 4]},
        {**tree(), "a": [torch.zeros(2, dtype=torch.int64), 3]}, {**tree(), "a": (torch.zeros(2), 3)},
        {"b": tree()["b"], "a": tree()["a"]},
    ]  # fmt: skip
    assert form_of(tree()) not in [form_of(other) for other in others]


def test_what_is_not_plain_has_no_form_but_passes_through() -> None:
    odd = object()
    with pytest.raises(TypeError, match="object"):
        form_of([odd])
    assert with_tensors([odd, torch.zeros(1)], [torch.ones(1)])[0] is odd


def test_tensors_are_replaced_one_by_one() -> None:
    doubled = map_tensors(lambda tensor: 2 * tensor, tree(1.0))
    assert all((t == 2.0).all() for t in tensors_of(doubled)) and form_of(doubled) == form_of(tree())


def test_a_form_is_a_key() -> None:
    known = {form_of(tree(1.0)): "first"}
    assert known[form_of(tree(2.0))] == "first" and form_of([tree()]) not in known
    same_leaves = {"b": torch.zeros(1), "a": torch.zeros(1)}
    assert form_of(same_leaves) != form_of(dict(reversed(same_leaves.items())))


@dataclass(frozen=True)
class Unregistered:
    tensor: torch.Tensor


def test_an_unregistered_dataclass_is_refused() -> None:
    with pytest.raises(TypeError, match="Unregistered"):
        form_of([Unregistered(torch.zeros(1))])
