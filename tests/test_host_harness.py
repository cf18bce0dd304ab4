"""The harness against the real server: a saved workflow becomes a prompt, runs, and tells its story."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from client import HostError, PromptFailed, PromptRejected
from host import Server
from saved_workflows import workflow_to_prompt

RED = 0xFF0000


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict:
    with server.client() as client:
        return client.object_info()


def node(node_id: int, kind: str, widgets: object = None, inputs: list | None = None, mode: int = 0) -> dict:
    return {"id": node_id, "type": kind, "mode": mode, "inputs": inputs or [], "widgets_values": widgets}


def slot(name: str, kind: str, link: int | None, widget: bool = False) -> dict:
    return {"name": name, "type": kind, "link": link} | ({"widget": {"name": name}} if widget else {})


def red_picture(mode: int = 0) -> dict:
    """EmptyImage -> ImageInvert -> Reroute -> PreviewImage, its width from a primitive, a note beside it."""
    return {
        "nodes": [
            node(1, "EmptyImage", [512, 32, 1, RED], [slot("width", "INT", 14, widget=True)]),
            node(2, "ImageInvert", [], [slot("image", "IMAGE", 11)], mode),
            node(3, "Reroute", None, [slot("", "*", 12)]),
            node(4, "PreviewImage", [], [slot("images", "IMAGE", 13)]),
            node(5, "Note", ["a note"]),
            node(6, "PrimitiveNode", [48, "fixed"]),
        ],
        "links": [
            [11, 1, 0, 2, 0, "IMAGE"],
            {"id": 12, "origin_id": 2, "origin_slot": 0, "target_id": 3, "target_slot": 0, "type": "IMAGE"},
            [13, 3, 0, 4, 0, "*"],
            [14, 6, 0, 1, 0, "INT"],
        ],
    }


@pytest.mark.parametrize(("mode", "colour"), [(0, (0, 255, 255)), (4, (255, 0, 0))], ids=["on", "bypassed"])
def test_a_saved_workflow_runs(server: Server, object_info: dict, mode: int, colour: tuple[int, int, int]):
    prompt = workflow_to_prompt(red_picture(mode), object_info)
    assert set(prompt) == ({"1", "2", "4"} if mode == 0 else {"1", "4"})
    assert prompt["1"]["inputs"] == {"width": 48, "height": 32, "batch_size": 1, "color": RED}

    seen: list[str] = []
    with server.client() as client:
        entry = client.run(prompt, on_event=lambda kind, data: seen.append(kind), timeout=120)
        picture = Image.open(io.BytesIO(client.view(entry["outputs"]["4"]["images"][0])))
    assert picture.size == (48, 32) and picture.convert("RGB").getpixel((5, 5)) == colour
    assert seen[-1] == "execution_success" and "executing" in seen


def test_a_muted_node_leaves_its_input_open(object_info: dict):
    prompt = workflow_to_prompt(red_picture(mode=2), object_info)
    assert set(prompt) == {"1", "4"} and prompt["4"]["inputs"] == {}


def test_control_after_generate_is_no_input(object_info: dict):
    widgets = [7, "randomize", 20, 8.5, "euler", "normal", 1.0]
    inputs = [slot("model", "MODEL", None), slot("seed", "INT", None, widget=True)]
    prompt = workflow_to_prompt({"nodes": [node(3, "KSampler", widgets, inputs)], "links": []}, object_info)
    names = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")
    assert prompt["3"]["inputs"] == dict(zip(names, [7, 20, 8.5, "euler", "normal", 1.0], strict=True))


def test_a_dynamic_combo_brings_its_options_inputs(object_info: dict):
    widgets = ["scale by multiplier", 0.5, "area"]
    prompt = workflow_to_prompt({"nodes": [node(1, "ResizeImageMaskNode", widgets)], "links": []}, object_info)
    assert prompt["1"]["inputs"] == {
        "resize_type": "scale by multiplier",
        "resize_type.multiplier": 0.5,
        "scale_method": "area",
    }


def test_values_saved_by_name(object_info: dict):
    widgets = {"width": 16, "height": 8, "batch_size": 1, "color": 0, "videopreview": {"hidden": True}}
    prompt = workflow_to_prompt({"nodes": [node(1, "EmptyImage", widgets)], "links": []}, object_info)
    assert prompt["1"]["inputs"] == {"width": 16, "height": 8, "batch_size": 1, "color": 0}


def test_an_unknown_node_is_named(object_info: dict):
    with pytest.raises(HostError, match="does not know: NoSuchNode"):
        workflow_to_prompt({"nodes": [node(1, "NoSuchNode")], "links": []}, object_info)


def test_wrong_inputs_are_told_before_anything_runs(server: Server):
    empty = {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 8, "batch_size": 1, "color": 0}}
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    with server.client() as client:
        with pytest.raises(PromptRejected, match=r"EmptyImage \(node 1\).*width") as rejected:
            client.queue({"1": empty, "2": shown})
        assert "1" in rejected.value.node_errors
        with pytest.raises(HostError, match="no outputs"):
            client.queue({"1": empty})


def test_a_failing_node_is_named(server: Server):
    inputs = {"string": "text", "regex_pattern": "(", "replace": "", "count": 0}
    flags = dict.fromkeys(("case_insensitive", "multiline", "dotall"), False)
    replace = {"class_type": "RegexReplace", "inputs": inputs | flags}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    with server.client() as client, pytest.raises(PromptFailed, match="RegexReplace: .*error: ") as failed:
        client.run({"1": replace, "2": shown}, timeout=60)
    assert failed.value.error["node_id"] == "1" and failed.value.error["traceback"]


def test_a_server_that_cannot_start_says_why(host_dir: Path, tmp_path: Path):
    with pytest.raises(HostError, match="unrecognized arguments: --no-such-argument"):
        Server(host_dir, tmp_path, ["--no-such-argument"]).__enter__()


def test_the_pack_loads_without_a_warning(server: Server):
    about_us = [line for line in server.log.splitlines() if "lora-kiln" in line.lower()]
    assert about_us, "the host's log does not name the pack"
    assert not [line for line in about_us if "WARNING" in line or "ERROR" in line or "IMPORT FAILED" in line]


def test_the_server_leaves_its_source_alone(server: Server, host_dir: Path):
    assert not (host_dir / "user").exists() and not (host_dir / "temp").exists()
    assert (server.workspace / "user" / "comfyui.db").exists()


def test_a_page_opens(server: Server, page):
    page.goto(server.url)
    page.wait_for_function("window.app && window.app.graph", timeout=60_000)
    assert page.evaluate("Object.keys(LiteGraph.registered_node_types).length") > 100
