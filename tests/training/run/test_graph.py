"""The graph above an input: its nodes, values and links count, their ids do not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from lora_kiln.training.run.graph import graph_above

PROMPT: dict[str, Any] = {
    "1": {"class_type": "Loader", "inputs": {"file": "a.safetensors"}},
    "2": {"class_type": "Patch", "inputs": {"model": ["1", 0], "scale": 1.1}},
    "3": {"class_type": "Merge", "inputs": {"one": ["2", 0], "other": ["1", 0], "pair": ["x", "y"]}},
    "4": {"class_type": "Train", "inputs": {"model": ["3", 0], "clip": ["1", 1], "steps": 4}},
    "5": {"class_type": "Save", "inputs": {"lora": ["4", 0]}},
}


def changed(node: str, name: str, value: Any) -> dict[str, Any]:
    prompt = copy.deepcopy(PROMPT)
    prompt[node]["inputs"][name] = value
    return prompt


def test_each_input_has_its_own() -> None:
    assert len(graph_above(PROMPT, "4", "model")) == len(graph_above(PROMPT, "4", "clip")) == 64
    assert graph_above(PROMPT, "4", "model") != graph_above(PROMPT, "4", "clip")


@pytest.mark.parametrize(
    ("node", "name", "value"),
    [
        ("1", "file", "b"),
        ("2", "scale", 3.0),
        ("3", "other", ["2", 0]),
        ("4", "model", ["3", 1]),
        ("4", "model", ["2", 0]),
    ],
)
def test_what_is_above_counts(node: str, name: str, value: Any) -> None:
    assert graph_above(changed(node, name, value), "4", "model") != graph_above(PROMPT, "4", "model")


@pytest.mark.parametrize(("node", "name", "value"), [("4", "steps", 9), ("5", "lora", "b"), ("4", "clip", ["2", 0])])
def test_what_is_beside_does_not(node: str, name: str, value: Any) -> None:
    assert graph_above(changed(node, name, value), "4", "model") == graph_above(PROMPT, "4", "model")


def test_ids_and_the_order_of_inputs_do_not() -> None:
    ids = {"1": "90", "2": "7:3", "3": "a", "4": "4", "5": "1"}
    renamed = {
        ids[node]: {
            "class_type": each["class_type"],
            "inputs": {
                name: [ids[value[0]], value[1]] if isinstance(value, list) and value[0] in ids else value
                for name, value in reversed(each["inputs"].items())
            },
        }
        for node, each in reversed(PROMPT.items())
    }
    assert graph_above(renamed, "4", "model") == graph_above(PROMPT, "4", "model")


def test_a_loop_ends() -> None:
    assert len(graph_above(changed("1", "file", ["3", 0]), "4", "model")) == 64


@pytest.mark.parametrize(
    "prompt", [None, {}, {"4": None}, {"4": {"inputs": {"model": ["9", 0]}}}, changed("4", "model", 1)]
)
def test_an_input_that_is_not_in_the_graph_has_none(prompt: Any) -> None:
    assert graph_above(prompt, "4", "model") == ""
