"""Comparisons that were drawn last: for the page that opens a workflow again, and to be used again unchanged."""

import weakref
from collections.abc import Sequence
from typing import Any

from .. import host

MOST_SHOWN = 64
"""Number of nodes whose last comparison is remembered for the page."""
_shown: dict[tuple[str, str], dict[str, Any]] = {}
"""(workflow id, node id) -> data for the page."""


def remember_shown(workflow: str, node: str, shown: dict[str, Any]) -> None:
    """Remembers a node's comparison for a page that opens the workflow later.

    Args:
        shown: the data for the page; its `rows` have `pictures`, entries of the host's UI output.
    """
    _shown.pop((workflow, node), None)
    _shown[workflow, node] = shown
    while len(_shown) > MOST_SHOWN:
        del _shown[next(iter(_shown))]


def last_shown(query: dict[str, str]) -> dict[str, Any]:
    """The comparison that a node last showed; empty if there is none, or its pictures are gone.

    Args:
        query: `workflow_id`; `node_ids`: all ids under which the node may have run, separated by commas.
    """
    keys = [(query.get("workflow_id", ""), node) for node in query.get("node_ids", "").split(",")]
    for key, shown in reversed(list(_shown.items())):  # a copy: another thread may add to it meanwhile
        if key in keys:
            is_complete = all(host.is_picture_there(each) for row in shown["rows"] for each in row["pictures"])
            return shown if is_complete else {}
    return {}


class LastDrawn:
    """The last result of a few nodes, valid while the node's inputs are the same objects and its settings are equal.

    With it another strength can be chosen for a node's outputs without drawing all pictures again.
    """

    def __init__(self, nodes: int = 4):
        self.nodes = nodes
        """Most nodes to remember."""
        self._results: dict[str, tuple[list[weakref.ref], Any, Any]] = {}

    def find(self, node: str, inputs: Sequence[Any], settings: Any) -> Any:
        """The result that was kept for a node with identical inputs and equal settings; None if there is none."""
        refs, known_settings, result = self._results.get(node, ([], None, None))
        is_same = len(refs) == len(inputs) and all(ref() is each for ref, each in zip(refs, inputs, strict=True))
        return result if is_same and known_settings == settings else None

    def keep(self, node: str, inputs: Sequence[Any], settings: Any, result: Any) -> None:
        """Remembers a result; the inputs are referenced weakly."""
        alive = {key: entry for key, entry in self._results.items() if key != node and all(ref() for ref in entry[0])}
        self._results = dict(list(alive.items())[-(self.nodes - 1) :])
        try:
            self._results[node] = ([weakref.ref(each) for each in inputs], settings, result)
        except TypeError:  # a plain dict, as core nodes give, has no weak references: its result is not remembered
            return
