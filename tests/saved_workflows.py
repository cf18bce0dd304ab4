"""Workflows as the page saves them, turned into prompts of ComfyUI's API format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from client import JSON, HostError

NEVER, BYPASS = 2, 4  # a node's `mode` in a saved workflow
NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "CURVE", "BOUNDING_BOX", "IMAGECOMPARE"}
CONTROLS = {"fixed", "increment", "decrement", "randomize"}


def workflow_to_prompt(workflow: JSON, object_info: JSON) -> JSON:
    """Turns a workflow as the page saves it into the API format that `/prompt` takes.

    Widget values are saved without names, in the order of the node's widgets, with extra values for "control
    after generate"; a link into a widget's input goes before the widget's own value. Muted nodes are left
    out, bypassed ones and reroutes are followed, primitives give their value. Subgraphs are not known here.

    Raises:
        HostError: for a node that the host does not know.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = dict(map(_link, workflow.get("links", [])))
    prompt: JSON = {}
    for node in nodes.values():
        kind = node["type"]
        if kind in NOTES | {"Reroute", "PrimitiveNode"} or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        if kind not in object_info:
            raise HostError(f"The workflow has a node that this host does not know: {kind} (node {node['id']}).")
        inputs = _widget_values(node, object_info[kind])
        for slot in node.get("inputs") or []:
            if slot.get("link") is None:
                continue
            if (source := _source(slot["link"], nodes, links)) is not None:
                inputs[slot["name"]] = source
        prompt[str(node["id"])] = {
            "class_type": kind,
            "inputs": inputs,
            "_meta": {"title": node.get("title") or object_info[kind].get("display_name") or kind},
        }
    return prompt


def with_ids_of_its_own(prompt: JSON, prefix: str) -> JSON:
    """A prompt in API form with a word before each node's id.

    A page shows the runs of the node that it has under the same id: those of one test are none of another's.
    """

    def moved(value: Any) -> Any:
        is_link = isinstance(value, list) and len(value) == 2 and value[0] in prompt
        return [prefix + value[0], value[1]] if is_link else value

    return {
        prefix + key: {**node, "inputs": {name: moved(value) for name, value in node["inputs"].items()}}
        for key, node in prompt.items()
    }


def _link(link: list | JSON) -> tuple[int, tuple[int, int, str]]:
    """A saved link, in either of the page's two forms, as id and (origin node, origin slot, type)."""
    if isinstance(link, list):
        link_id, origin, slot, _, _, kind = link[:6]
        return link_id, (origin, slot, kind)
    return link["id"], (link["origin_id"], link["origin_slot"], link["type"])


def _source(link_id: int, nodes: dict[Any, JSON], links: dict[int, tuple[int, int, str]]) -> Any:
    """What a link brings: [node id, slot], a primitive's value, or None where nothing comes."""
    if link_id not in links:
        return None
    origin, slot, kind = links[link_id]
    node = nodes.get(origin)
    if node is None or node.get("mode", 0) == NEVER:
        return None
    if node["type"] == "PrimitiveNode":
        return (node.get("widgets_values") or [None])[0]
    if node["type"] != "Reroute" and node.get("mode", 0) != BYPASS:
        return [str(origin), slot]
    inputs = node.get("inputs") or []
    same_type = [entry for entry in inputs if entry.get("type") in (kind, "*") or node["type"] == "Reroute"]
    same_slot = [entry for entry in same_type if entry is (inputs[slot] if slot < len(inputs) else None)]
    for entry in same_slot + same_type:
        if entry.get("link") is not None:
            return _source(entry["link"], nodes, links)
    return None


def _widget_values(node: JSON, info: JSON) -> JSON:
    """A node's widget values by input name."""
    saved = node.get("widgets_values")
    slots = {slot["name"] for slot in node.get("inputs") or [] if slot.get("widget")}
    if isinstance(saved, dict):
        names = [name for name, _, _ in _widgets(info["input"], slots, lambda name: saved.get(name))]
        return {name: saved[name] for name in names if name in saved}
    values, taken = list(saved or []), {}

    def take(name: str, default: object = None) -> Any:
        if values:
            taken[name] = values.pop(0)
        elif default is not None:
            taken[name] = default
        return taken.get(name)

    for name, kind, options in _widgets(info["input"], slots, lambda name: taken.get(name)):
        default = options.get("default", kind[0] if isinstance(kind, list) and kind else None)
        take(name, default)
        seed = kind == "INT" and name in ("seed", "noise_seed")
        if (options.get("control_after_generate") or seed) and values and values[0] in CONTROLS:
            values.pop(0)
            if kind == "COMBO" or isinstance(kind, list):
                values[:1] = []  # a combo's control comes with a filter
    return taken


def _widgets(
    inputs: JSON, slots: set[str], value: Callable[[str], Any], prefix: str = ""
) -> Iterator[tuple[str, Any, JSON]]:
    """Yields (name, type, options) of the inputs that are widgets, in the page's order.

    A dynamic combo is followed by the inputs of the option that `value` gives for it, named `combo.input`.
    """
    for section in ("required", "optional"):
        for name, spec in (inputs.get(section) or {}).items():
            kind, options, name = spec[0], spec[1] if len(spec) > 1 else {}, prefix + name
            if kind == "COMFY_DYNAMICCOMBO_V3":
                yield name, kind, options
                for option in options.get("options", []):
                    if option["key"] == value(name):
                        yield from _widgets(option["inputs"], slots, value, f"{name}.")
                continue
            is_widget = isinstance(kind, list) or kind in WIDGETS or name in slots
            if is_widget and not options.get("forceInput"):
                yield name, kind, options
