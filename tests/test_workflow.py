"""The pack in the real server: the example workflow from pictures to a saved LoRA, stopped, wrong, and again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_kiln.nodes import NODES

from client import Client, PromptFailed, PromptInterrupted, PromptRejected
from host import Server
from kit.concepts import Concept
from kit.demo import CHECKPOINT, FOLDER, demo_prompt, node, node_id, only, read_image, write_data

STEPS = 3
CONCEPT = Concept(1)
_calls = 0
QUICK = {"steps": STEPS, "batch_size": 2, "rank": 4}


@pytest.fixture
def client(server: Server, kit_dir: Path) -> Iterator[Client]:
    write_data(server.workspace / "input", CONCEPT)
    with server.client() as client:
        yield client


def workflow(client: Client, **config: Any) -> dict[str, Any]:
    """The example workflow, short: three steps, one row of two strengths, six sampler steps."""
    prompt = demo_prompt(client, CONCEPT, {**QUICK, **config})
    node(prompt, "KilnApplyLoRAPreview")["inputs"].update(steps=2, strengths="0, 1", prompts=f"a {CONCEPT.trigger}")
    node(prompt, "KSampler")["inputs"].update(steps=4)
    return prompt


def sampled(client: Client, lora: str | None = None) -> torch.Tensor:
    """One picture by the core's own nodes, drawn anew at every call and not taken from the host's cache."""
    global _calls
    _calls += 1
    model, clip = ["c", 0], ["c", 1]
    prompt: dict[str, Any] = {"c": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}}}
    if lora:
        inputs = {"model": model, "clip": clip, "lora_name": lora, "strength_model": 1.0, "strength_clip": 1.0}
        prompt["l"] = {"class_type": "LoraLoader", "inputs": inputs}
        model, clip = ["l", 0], ["l", 1]
    prompt |= {
        "p": {"class_type": "CLIPTextEncode", "inputs": {"text": f"a {CONCEPT.trigger}", "clip": clip}},
        "n": {"class_type": "CLIPTextEncode", "inputs": {"text": " " * _calls, "clip": clip}},  # spaces say nothing
        "e": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "k": {
            "class_type": "KSampler",
            "inputs": {
                "model": model, "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["e", 0], "seed": 7,
                "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        },
        "d": {"class_type": "VAEDecode", "inputs": {"samples": ["k", 0], "vae": ["c", 2]}},
        "s": {"class_type": "PreviewImage", "inputs": {"images": ["d", 0]}},
    }  # fmt: skip
    return read_image(client, client.run(prompt)["outputs"]["s"]["images"][0])


def test_the_pack_loads_without_a_warning(server: Server):
    ours = [kind for kind, facts in server.client().object_info().items() if facts["category"] == "LoRA Kiln"]
    assert len(ours) == len(NODES)
    about_us = [line for line in server.first_log.splitlines() if "kiln" in line.lower()]
    assert not [line for line in about_us if "WARNING" in line or "ERROR" in line or "IMPORT FAILED" in line]


def test_from_pictures_to_a_lora_that_every_node_takes(server: Server, client: Client):
    events: list[dict[str, Any]] = []
    prompt = workflow(client)
    node(prompt, "CLIPTextEncode")["inputs"]["text"] = f"a {CONCEPT.trigger}"
    before = sampled(client)
    mark = len(server.log)
    outputs = client.run(prompt, on_event=lambda kind, data: kind == "kiln.run" and events.append(data))["outputs"]
    trained = read_image(client, outputs[node_id(prompt, "SaveImage")]["images"][0])

    steps = [point[0] for event in events for point in event["points"]]
    assert steps == list(range(1, STEPS + 1))
    assert events[-1]["state"] == "finished"
    assert outputs[node_id(prompt, "LossGraphNode")]["images"]

    saved = Path(outputs[node_id(prompt, "KilnSaveLoRA")]["text"][0].splitlines()[0].removeprefix("Saved "))
    assert saved.is_file()
    assert saved.name in client.object_info()["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert torch.equal(sampled(client, saved.name), trained)
    assert not torch.equal(before, trained)
    assert torch.equal(sampled(client), before)
    assert "lora key not loaded" not in server.log[mark:]
    assert "NOT LOADED" not in server.log[mark:]


def test_an_interrupt_keeps_what_was_learned_and_leaves_the_model_alone(server: Server, client: Client):
    before = sampled(client)
    mark = len(server.log)
    prompt = only(workflow(client, steps=500, seed=11), "KilnSaveLoRA")
    node(prompt, "KilnTrainLoRA")["inputs"]["name"] = "stopped"

    def stop(kind: str, data: dict[str, Any]) -> None:
        if kind == "kiln.run" and data["step"] >= 2 and data["state"] == "training":
            client.interrupt()

    with pytest.raises(PromptInterrupted):
        client.run(prompt, on_event=stop)
    kept = list((server.workspace / "models" / "loras").glob("stopped-step*-partial.safetensors"))
    assert len(kept) == 1
    assert client.get("/kiln/runs")[-1]["state"] == "interrupted"
    assert torch.equal(sampled(client), before)
    assert not torch.equal(sampled(client, kept[0].name), before)
    assert "lora key not loaded" not in server.log[mark:]


def test_the_dataset_node_runs_again_when_a_file_changes_and_only_then(server: Server, client: Client):
    prompt = only(workflow(client), "KilnLoadDataset")
    prompt["x"] = {"class_type": "PreviewAny", "inputs": {"source": [node_id(prompt, "KilnLoadDataset"), 2]}}

    def ran() -> bool:
        seen: list[str] = []
        client.run(prompt, on_event=lambda kind, data: kind == "executing" and seen.append(data.get("node")))
        return node_id(prompt, "KilnLoadDataset") in seen

    caption = server.workspace / "input" / FOLDER / "pictures" / "00.txt"
    assert ran()
    assert not ran()
    caption.write_text("something else\n")
    assert ran()
    assert not ran()
    (caption.parent / "15.png").unlink()
    assert ran()


@pytest.mark.parametrize("folder", ["../..", "/etc", "lora_kiln_demo/../../.."])
def test_a_folder_outside_the_allowed_roots_is_refused_in_the_node(client: Client, folder: str):
    prompt = workflow(client)
    node(prompt, "KilnLoadDataset")["inputs"]["folder"] = folder
    with pytest.raises(PromptRejected, match="outside the folders that may be read"):
        client.run(prompt)


def test_rank_0_is_refused_in_the_node(client: Client):
    with pytest.raises(PromptRejected, match="rank"):
        client.run(workflow(client, rank=0))


def test_a_folder_without_pictures_is_said_in_the_node(server: Server, client: Client):
    empty = server.workspace / "input" / "nothing_here"
    shutil.rmtree(empty, ignore_errors=True)
    empty.mkdir()
    prompt = workflow(client)
    node(prompt, "KilnLoadDataset")["inputs"]["folder"] = empty.name
    with pytest.raises(PromptFailed, match="holds no picture"):
        client.run(prompt)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a\\b", ""])
def test_a_lora_cannot_be_saved_outside_its_folder(client: Client, name: str):
    prompt = workflow(client)
    node(prompt, "KilnSaveLoRA")["inputs"]["filename"] = name
    with pytest.raises(PromptRejected, match="filename is"):
        client.run(prompt)
