"""The graph above an input of a node, as a digest: what it makes is the same as long as the graph is."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def graph_above(prompt: Any, node: str, name: str) -> str:
    """A digest of all nodes that an input depends on: their classes, values and links, not their ids.

    Args:
        prompt: the graph in API form.
        node: id of the node.
        name: of its input.

    Returns:
        Empty if the node or its link is not in the prompt, as in a graph that was expanded while it ran.
    """
    link = _link(_inputs(prompt, node).get(name), prompt)
    if link is None:
        return ""
    numbers, waiting, described = {link[0]: 0}, [link[0]], []
    for each in waiting:  # grows on the way
        values = dict(_inputs(prompt, each))
        for key in sorted(values):
            above = _link(values[key], prompt)
            if above is not None:
                if above[0] not in numbers:
                    numbers[above[0]] = len(numbers)
                    waiting.append(above[0])
                values[key] = {"node": numbers[above[0]], "output": above[1]}
        described.append([prompt[each].get("class_type"), values])
    return hashlib.sha256(json.dumps([link[1], described], sort_keys=True, default=str).encode()).hexdigest()


def _inputs(prompt: Any, node: str) -> Mapping[str, Any]:
    found = prompt.get(node) if isinstance(prompt, dict) else None
    inputs = found.get("inputs") if isinstance(found, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _link(value: Any, prompt: Any) -> tuple[str, Any] | None:
    """(id of the node, number of its output) of an input that is a link."""
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and value[0] in prompt
    return (value[0], value[1]) if is_link else None
