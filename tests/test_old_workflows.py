"""Workflows that were saved with an older version: this version's nodes take every value in them as it was meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Client, PromptRejected
from host import Server
from saved_workflows import workflow_to_prompt

DATA = Path(__file__).parent / "data"
WORKFLOWS = sorted((DATA / "workflows-0.1").glob("*.json"))
PROMPTS = json.loads((DATA / "prompts-0.1.json").read_text("utf-8"))
"""What version 0.1 made of each of them in the API format: stem -> prompt"""
FILES = {"ckpt_name", "lora_name", "folder", "regularisation_folder", "captioner"}
"""Inputs that name files of the person's own"""
ABSENT = "no such file.safetensors"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


def names_in(inputs: dict[str, Any]) -> set[str]:
    """The inputs that a node's schema has."""
    return set(inputs.get("required", {})) | set(inputs.get("optional", {}))


def complaints(client: Client, prompt: dict[str, Any]) -> list[str]:
    """What the host has against a prompt's values, apart from its files.

    Every file is given a name that does not exist, so that the host refuses the prompt and no node runs.
    """
    for node in prompt.values():
        inputs = node["inputs"]
        inputs |= {name: ABSENT for name in FILES & inputs.keys() if inputs[name] != "none"}
    with pytest.raises(PromptRejected) as rejected:
        client.queue(prompt)
    assert rejected.value.node_errors, rejected.value
    errors = [error for node in rejected.value.node_errors.values() for error in node["errors"]]
    return [f"{error['message']}: {error['details']}" for error in errors if ABSENT not in error["details"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_of_version_0_1_opens_with_its_values(path: Path, client: Client):
    prompt = workflow_to_prompt(json.loads(path.read_text("utf-8")), client.object_info())
    then = PROMPTS[path.stem]
    assert prompt.keys() == then.keys()
    for key, node in then.items():
        now = prompt[key]
        assert now["class_type"] == node["class_type"]
        # Values are saved without names, in the widgets' order: one put between them would move all behind it.
        assert {name: now["inputs"].get(name) for name in node["inputs"]} == node["inputs"]
    assert complaints(client, prompt) == []


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_of_version_0_1_is_taken(name: str, client: Client):
    prompt, info = PROMPTS[name], client.object_info()
    for node in prompt.values():
        assert node["inputs"].keys() <= names_in(info[node["class_type"]]["input"]), node["class_type"]
    assert complaints(client, json.loads(json.dumps(prompt))) == []


@pytest.mark.parametrize(("kind", "field", "value"), [("KilnLoRAConfig", "rank", 0), ("KilnSaveLoRA", "format", "x")])
def test_a_value_that_is_no_longer_taken_is_seen(kind: str, field: str, value: object, client: Client):
    prompt = json.loads(json.dumps(PROMPTS["First LoRA"]))
    (node,) = [each for each in prompt.values() if each["class_type"] == kind]
    assert field in node["inputs"]
    node["inputs"][field] = value
    (complaint,) = complaints(client, prompt)
    assert field in complaint
