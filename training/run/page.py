"""Answers to the page's HTTP requests about runs."""

import re
from typing import Any

from .. import host
from ..basics.errors import Refusal, raise_if_any
from . import live
from .workflows import workflow_of

MOST_POINTS = 200_000


def runs(query: dict[str, str]) -> list[dict[str, Any]]:
    """The runs of a workflow (query workflow_id), also those of earlier servers; without it all runs of this server."""
    return live.histories(host.runs_root(), workflow_of(query.get("workflow_id")) or None)


def run(query: dict[str, str]) -> dict[str, Any]:
    """One run of this server (query run), its curve thinned out to about `points` points.

    Raises:
        Refusal: there is no such run.
        InputError: points is not a number in range.
    """
    points = query.get("points", str(live.MOST_POINTS))
    if not (re.fullmatch("[0-9]{1,6}", points) and 2 <= int(points) <= MOST_POINTS):
        raise_if_any("The request", [f"points is {points[:20]!r}; it must be a number from 2 to {MOST_POINTS}."])
    return _live(query.get("run", "")).history(int(points))


def pictures(query: dict[str, str]) -> dict[str, Any]:
    """The pictures of a run of this server with their losses, the highest first.

    Raises:
        Refusal: there is no such run.
    """
    return {"pictures": _live(query.get("run", "")).pictures()}


def control(body: dict[str, Any]) -> dict[str, Any]:
    """Passes a request on to a run; for the actions see `controls.ACTIONS`.

    Raises:
        Refusal: there is no such run, or it does not take the action in its present state.
        InputError: the request is malformed.
    """
    names = ("run", "prompt_id", "node_id", "action")
    wrong = [name for name in names if not isinstance(body.get(name), str)]
    raise_if_any("The request", [f"{name} is missing; it must be a text." for name in wrong])
    found = _live(body["run"])
    if (found.prompt_id, found.node_id) != (body["prompt_id"], body["node_id"]):
        raise Refusal(404, "The run is of another queue. Reload the page.")
    found.ask(body["action"], body.get("value"))
    return {}


def _live(name: str) -> live.LiveRun:
    found = live.live_run(name)
    if found is None:
        raise Refusal(404, "There is no such run in this server. Reload the page.")
    return found
