"""What a person can ask of a run while it goes on, through the real server."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from client import Client
from host import Server
from kit.concepts import Concept
from kit.demo import demo_prompt, node, node_id, only, write_data

CONCEPT = Concept(1)
STEPS = 200


def post(server: Server, path: str, body: Any, kind: str = "application/json") -> tuple[int, Any]:
    """(status, answer) of a POST request."""
    request = urllib.request.Request(
        f"{server.url}{path}", json.dumps(body).encode(), {"Content-Type": kind}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


class Person:
    """Asks one thing after another, each when what was asked before has shown."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.asked: list[str] = []
        self.seen: list[dict[str, Any]] = []
        self.answers: list[tuple[int, Any]] = []
        self.paused_at = 0

    def ask(self, run: dict[str, Any], action: str, value: Any = None) -> None:
        body = {**{key: run[key] for key in ("run", "prompt_id", "node_id")}, "action": action, "value": value}
        self.answers.append(post(self.server, "/kiln/run/control", body))
        self.asked.append(action)

    def __call__(self, kind: str, run: dict[str, Any]) -> None:
        if kind != "kiln.run":
            return
        self.seen.append(run)
        marks = [mark["kind"] for each in self.seen for mark in each["marks"]]
        if not self.asked and run["state"] == "training" and run["step"] >= 2:
            self.ask(run, "pause")
        elif self.asked == ["pause"] and run["state"] == "paused":
            self.paused_at = run["step"]
            self.ask(run, "pause")  # it is paused already: refused
            self.ask(run, "learning_rate", 0.5)
            self.ask(run, "sample_prompts", [f"a {CONCEPT.trigger}", "<b>a star</b>"])
            self.ask(run, "sample")
            self.ask(run, "checkpoint")
        elif len(self.asked) == 6 and marks.count("sample") and sum(len(each["samples"]) for each in self.seen) == 2:
            self.ask(run, "resume")
        elif len(self.asked) == 7 and run["state"] == "training" and run["step"] > self.paused_at + 1:
            self.ask(run, "finish")


def test_a_run_is_paused_changed_looked_at_and_finished_by_hand(server: Server, kit_dir: Path):
    write_data(server.workspace / "input", CONCEPT)
    with server.client() as client:
        config = {"steps": STEPS, "batch_size": 1, "rank": 4, "sample_steps": 2}
        prompt = only(demo_prompt(client, CONCEPT, config), "KilnSaveLoRA")
        node(prompt, "KilnTrainLoRA")["inputs"]["name"] = "by_hand"
        person = Person(server)
        outputs = client.run(prompt, on_event=person)["outputs"]
    assert [status for status, _ in person.answers] == [200, 409, 200, 200, 200, 200, 200, 200], person.answers
    saved = Path(outputs[node_id(prompt, "KilnSaveLoRA")]["text"][0].splitlines()[0].removeprefix("Saved "))
    assert saved.is_file()
    last = person.seen[-1]
    assert last["state"] == "finished" and 2 <= last["step"] < STEPS
    assert any("Finished by hand" in note for note in last["notes"])
    rates = [point[2] for each in person.seen for point in each["points"]]
    assert rates[-1] < 0.6 * rates[0]

    folder = server.workspace / "output" / "lora_kiln" / last["run"]
    assert len(list((folder / "samples").glob("*.png"))) == 2
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"
    assert list((folder / "checkpoints").glob("step*/state.safetensors"))
    history = next(each for each in Client(server.url).get("/kiln/runs") if each["run"] == last["run"])
    assert {mark["kind"] for mark in history["marks"]} >= {"learning_rate", "sample", "checkpoint"}
    assert [sample["prompt"] for sample in history["samples"]] == [f"a {CONCEPT.trigger}", "<b>a star</b>"]
    pictures = Client(server.url).get(f"/kiln/run/pictures?run={last['run']}")["pictures"]
    losses = [picture["loss"] for picture in pictures if picture["loss"] is not None]
    assert losses == sorted(losses, reverse=True) and losses and pictures[0]["thumbnail"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        ({"run": "nobody", "prompt_id": "p", "node_id": "1", "action": "finish"}, "application/json", 404),
        ({"run": "nobody", "action": "finish"}, "application/json", 400),
        ([], "application/json", 400),
        ({"run": "nobody", "prompt_id": "p", "node_id": "1", "action": "finish"}, "text/plain", 415),
        ({"run": ["a"], "prompt_id": "p", "node_id": "1", "action": {}}, "application/json", 400),
    ],
)
def test_a_wish_that_is_none_is_refused(server: Server, body: Any, kind: str, status: int):
    found, answer = post(server, "/kiln/run/control", body, kind)
    assert found == status and answer["error"]
