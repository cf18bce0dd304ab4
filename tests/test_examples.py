"""The example workflows: each runs in the real server on the kit, can be read, and says kindly what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from client import Client, PromptRejected
from host import PACK, Server
from kit.concepts import Concept
from kit.demo import CHECKPOINT, FOLDER, WORKFLOW, node_id, write_data
from saved_workflows import with_ids_of_its_own, workflow_to_prompt

EXAMPLES = sorted(path for path in (PACK / "example_workflows").glob("*.json") if path != WORKFLOW)
"""The demo's own workflow has tests of its own."""
CONCEPT = Concept(1)
LORA = "examples.safetensors"
QUICK: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
    "KilnLoadDataset": {"resolution": 128, "shortest_side": 64},
    "KilnCaptionImages": {"captioner": "kiln-kit-blip", "max_new_tokens": 8, "num_beams": 1},
    "KilnLoRAConfig": {"steps": 2, "batch_size": 1, "rank": 4, "sample_every": 0, "save_every": 0},
    "KilnApplyLoRAPreview": {"width": 128, "height": 128, "steps": 2, "strengths": "0, 1"},
    "EmptyLatentImage": {"width": 128, "height": 128, "batch_size": 1},
    "KSampler": {"steps": 2},
}
"""What a person chooses, as the kit has it; and less of it."""
TITLE = 30
"""height of a node's title, above its position"""


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text("utf-8"))


@pytest.fixture
def client(server: Server, kit_dir: Path) -> Iterator[Client]:
    write_data(server.workspace / "input", CONCEPT)
    with server.client() as client:
        yield client


def on_the_kit(workflow: dict[str, Any], client: Client) -> dict[str, Any]:
    """An example in API form, with the kit's checkpoint, pictures and captioner chosen."""
    prompt = workflow_to_prompt(workflow, client.object_info())
    for each in prompt.values():
        inputs = each["inputs"] | QUICK.get(each["class_type"], {})
        if inputs.get("folder", "none") != "none":
            inputs["folder"] = f"{FOLDER}/pictures"
        if inputs.get("regularisation_folder", "none") != "none":
            inputs["regularisation_folder"] = f"{FOLDER}/base"
        each["inputs"] = {name: LORA if name == "lora_name" else value for name, value in inputs.items()}
    return with_ids_of_its_own(prompt, "example ")


@pytest.fixture(scope="module")
def lora(server: Server, kit_dir: Path) -> Path:
    """A LoRA for the examples that go on from one, made by the first of them."""
    write_data(server.workspace / "input", CONCEPT)
    with server.client() as client:
        prompt = on_the_kit(json.loads((WORKFLOW.parent / "First LoRA.json").read_text("utf-8")), client)
        save = node_id(prompt, "KilnSaveLoRA")
        prompt[save]["inputs"]["filename"] = Path(LORA).stem
        client.run({key: each for key, each in prompt.items() if each["class_type"] != "KilnApplyLoRAPreview"})
    return server.workspace / "models" / "loras" / LORA


def test_an_example_runs_on_the_kit_and_shows_what_it_made(
    workflow: dict[str, Any], server: Server, client: Client, lora: Path
):
    assert lora.is_file()
    prompt, info = on_the_kit(workflow, client), client.object_info()
    outputs = client.run(prompt)["outputs"]
    shown = {key: each["class_type"] for key, each in prompt.items() if info[each["class_type"]]["output_node"]}
    assert shown
    for key, kind in shown.items():
        if kind == "SaveLoRA":  # the core's, which shows nothing
            assert list((server.workspace / "output" / "loras").glob("my_lora*.safetensors"))
        else:
            assert any(outputs[key].values()), kind


def test_an_example_is_laid_out_to_be_read(workflow: dict[str, Any]):
    boxes = {each["id"]: (*each["pos"], *each["size"]) for each in workflow["nodes"]}
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        beside = a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0]
        below = a[1] + a[3] <= b[1] - TITLE or b[1] + b[3] <= a[1] - TITLE
        assert beside or below, f"nodes {one} and {other} lie over each other"
    assert workflow["groups"]
    notes = [each for each in workflow["nodes"] if each["type"] == "MarkdownNote"]
    assert notes and all(each["widgets_values"][0].startswith("## ") for each in notes)


def test_an_example_has_a_picture_of_a_modest_size():
    for path in EXAMPLES:
        picture = path.with_suffix(".jpg")
        assert 3_000 < picture.stat().st_size < 120_000
        with Image.open(picture) as opened:
            assert opened.width <= 900


MISSING = [
    ("KilnLoadDataset", "folder", "no_such_pictures", "there is no such folder here. Make .*no_such_pictures"),
    ("KilnLoadDataset", "regularisation_folder", "no_such_base", "there is no such folder here. Make .*no_such_base"),
    ("KilnCaptionImages", "captioner", "no-such-blip", "which is not here; .*put it into that folder, or choose"),
    ("KilnLoadLoRA", "lora_name", "no_such.safetensors", "no .safetensors file in .*loras: put it there, or choose"),
    ("KilnImportRecipe", "file", "input/no_such.toml", "there is no such file here: put it into .*input, or choose"),
]


def with_defaults(client: Client, kind: str, **inputs: Any) -> dict[str, Any]:
    """A node with the default of each required field that is not given."""
    fields = client.object_info()[kind]["input"]["required"]
    defaults = {name: spec[1]["default"] for name, spec in fields.items() if "default" in spec[-1]}
    return {"class_type": kind, "inputs": defaults | inputs}


@pytest.mark.parametrize(("kind", "field", "value", "says"), MISSING, ids=[each[1] for each in MISSING])
def test_a_shared_workflow_that_names_what_is_not_here_says_where_it_goes(client: Client, kind, field, value, says):
    """Said at once, before anything runs, and in place of the host's list of all there is."""
    prompt = {
        "1": with_defaults(client, kind, **{field: value}),
        "2": with_defaults(client, "KilnLoadDataset", folder=f"{FOLDER}/pictures"),
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 1]}},
    }
    if kind == "KilnCaptionImages":
        prompt["1"]["inputs"]["dataset"] = ["2", 0]
    with pytest.raises(PromptRejected, match=f"(?is){says}") as refused:
        client.run(prompt)
    assert "Value not in list" not in str(refused.value)
