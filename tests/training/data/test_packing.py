"""Values as bytes."""

import pytest
import torch
from lora_kiln.training.data.packing import pack, unpack


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).bfloat16(),
        torch.randn(4, 3).T,
        torch.zeros(0, 2),
        torch.tensor(5),
        [[torch.randn(1, 7, 8), {"pooled_output": torch.randn(1, 8), "guidance": 3.5, "none": None, "on": True}]],
        ({"nested": [(1, "two"), []], "": {}},),
        None,
        ["tensor", "0"],
    ],
)
def test_a_value_comes_back_as_it_was(value) -> None:
    assert same(unpack(pack(value)), value)


def test_an_inference_tensor_comes_back_as_a_normal_one() -> None:
    with torch.inference_mode():
        blob = pack(torch.ones(3))
    assert not unpack(blob).is_inference()


@pytest.mark.parametrize("value", [object(), [lambda: 1], {"a": {1: 2}}, {1, 2}, torch.float32, b"bytes"])
def test_a_value_of_another_kind_is_refused(value) -> None:
    with pytest.raises(TypeError):
        pack(value)
