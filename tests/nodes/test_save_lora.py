"""Save LoRA: the file, where it may lie, and that the host's list has it at once."""

import json
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy_api.latest import io
from lora_kiln.nodes.save_lora import SaveLoRA
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.lora.lora import LoRAModel
from lora_kiln.training.lora.save import save_lora
from safetensors import safe_open
from safetensors.torch import load_file

from host import Server
from loras import random_lora
from models import sd15

LORA = LoRAModel({"lora_unet_a.alpha": torch.tensor(2.0)}, {"ss_seed": "7"}, "anna")


@pytest.fixture(autouse=True)
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/loras."""
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    return folder


def save(filename: str = "anna", lora=LORA, **inputs) -> Path:
    return Path(SaveLoRA.execute(lora, filename, **inputs).args[0])


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_the_file_holds_the_lora_and_its_metadata(loras: Path) -> None:
    path = save()
    assert path == loras / "anna.safetensors"
    assert torch.equal(load_file(path)["lora_unet_a.alpha"], torch.tensor(2.0))
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_seed"] == "7"


def test_a_name_that_differs_in_case_alone_is_taken(loras: Path) -> None:
    assert [save(name).name for name in ("Anna", "anna", "ANNA")] == [
        "Anna.safetensors",
        "anna_2.safetensors",
        "ANNA_3.safetensors",
    ]


def test_the_hosts_list_has_it_at_once() -> None:
    assert folder_paths.get_filename_list("loras") == []
    save("people/anna")
    assert folder_paths.get_filename_list("loras") == ["people/anna.safetensors"]


def test_the_hosts_list_has_a_second_one_in_a_known_folder_at_once() -> None:
    save("people/anna")
    folder_paths.get_filename_list("loras")
    save("people/anna")
    assert folder_paths.get_filename_list("loras") == ["people/anna.safetensors", "people/anna_2.safetensors"]


def test_a_state_dict_of_another_node_can_be_saved() -> None:
    assert load_file(save(lora={"a": torch.ones(2)}))["a"].sum() == 2


def test_an_existing_file_is_kept() -> None:
    assert save() != save()


@pytest.mark.parametrize("filename", ["../x", "/tmp/x", "a/../../x", "a/ .. / .. / .. /x", "", "a\\..\\x"])
def test_a_path_outside_the_loras_folder_is_refused(loras: Path, filename: str) -> None:
    with pytest.raises(InputError, match="filename is"):
        save(filename)
    assert not list(loras.parent.parent.rglob("*.safetensors"))


@pytest.mark.parametrize("filename", ["../x", " .. /x"])
def test_the_host_hears_of_a_bad_path_before_the_run(filename: str) -> None:
    assert "filename is" in str(SaveLoRA.validate_inputs(filename=filename))


def test_a_file_in_the_way_of_the_folder_is_said(loras: Path) -> None:
    (loras / "people").write_text("a file")
    with pytest.raises(InputError, match="could not be written"):
        save("people/anna")


@pytest.mark.parametrize("filename", ["anna", None])
def test_the_host_accepts_a_good_path_and_one_it_does_not_know_yet(filename: str | None) -> None:
    assert SaveLoRA.validate_inputs(filename=filename) is True


# ---------------------------------------------------------------- format and precision


@pytest.mark.parametrize(
    ("form", "start", "end"),
    [
        ("kohya", ("lora_unet_", "lora_te_"), (".lora_down.weight", ".lora_up.weight", ".alpha")),
        ("diffusers", ("unet.", "text_encoder."), (".lora_A.weight", ".lora_B.weight", ".down.weight", ".up.weight")),
        ("comfyui", ("diffusion_model.", "text_encoders."), (".lora_down.weight", ".lora_up.weight", ".alpha")),
    ],
)
def test_a_trained_lora_has_every_format(form: str, start: tuple, end: tuple) -> None:
    lora = random_lora(sd15())
    keys = load_file(save(lora=lora, format=form, precision="bf16"))
    assert len(keys) >= 2 * len(lora) // 3
    assert all(key.startswith(start) and key.endswith(end) for key in keys)
    assert {tensor.dtype for key, tensor in keys.items() if not key.endswith("alpha")} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("own", "chosen", "written"),
    [("fp16", "as trained", torch.float16), ("fp16", "fp32", torch.float32), (None, "as trained", torch.float32)],
)
def test_as_trained_is_the_number_format_of_the_recipe(own, chosen: str, written: torch.dtype) -> None:
    lora = random_lora(sd15())
    lora.precision = own
    tensors = load_file(save(lora=lora, precision=chosen))
    assert {tensor.dtype for key, tensor in tensors.items() if not key.endswith("alpha")} == {written}


def test_a_lora_from_a_file_needs_the_model_for_another_format() -> None:
    small = sd15()
    lora = LoRAModel(random_lora(small), {}, "anna")
    with pytest.raises(InputError, match="connect the model"):
        save(lora=lora, format="diffusers")
    keys = load_file(save(lora=lora, format="diffusers", model=small.model, clip=small.clip))
    assert all(key.startswith(("unet.", "text_encoder.")) for key in keys)


def test_keys_that_nobody_knows_stay_in_the_default_format_and_that_is_said() -> None:
    output = SaveLoRA.execute({"diffusion_model.a.lora_up.weight": torch.ones(2, 1)}, "anna")
    assert list(load_file(output.args[0])) == ["diffusion_model.a.lora_up.weight"]
    assert "as they came" in output.ui.value


# ---------------------------------------------------------------- the workflow in the file


def saved_by(prompt, extra, lora=LORA, **inputs):
    """What the host's executor does: a class of its own that carries the graph."""
    node = SaveLoRA.PREPARE_CLASS_CLONE(
        {
            "hidden_inputs": {io.Hidden.prompt: prompt, io.Hidden.extra_pnginfo: extra},
            "dynamic_paths": {}, "dynamic_paths_default_value": {}, "create_dynamic_tuple": False,
        }
    )  # fmt: skip
    return node.execute(lora, "anna", **inputs)


GRAPH = {"nodes": [{"id": 1, "title": "é"}]}


def test_the_file_remembers_its_graph() -> None:
    values = metadata(Path(saved_by({"1": {"inputs": {}}}, {"workflow": GRAPH}).args[0]))
    assert json.loads(values["workflow"]) == GRAPH
    assert json.loads(values["prompt"]) == {"1": {"inputs": {}}}


def test_the_switch_keeps_the_graph_out_and_an_older_one_too() -> None:
    lora = LoRAModel(LORA, {"ss_seed": "7", "workflow": "{}", "prompt": "{}"}, "anna")
    values = metadata(Path(saved_by({"1": {}}, {"workflow": GRAPH}, lora, save_workflow=False).args[0]))
    assert not {"workflow", "prompt"} & set(values) and values["ss_seed"] == "7"


def test_a_graph_too_large_for_the_page_is_left_out_and_that_is_said() -> None:
    output = saved_by({"1": {}}, {"workflow": {"nodes": ["x" * 2**22]}})
    assert not {"workflow", "prompt"} & set(metadata(Path(output.args[0])))
    assert "too large" in output.ui.value


def test_the_graph_arrives_from_the_real_server(server: Server) -> None:
    """Load LoRA File and Save LoRA in a queue, with the workflow as a page sends it."""
    (server.workspace / "models" / "loras").mkdir(exist_ok=True)
    lora = random_lora(sd15())
    source = save_lora(server.workspace / "models" / "loras" / "source.safetensors", lora, {"ss_seed": "7"})
    prompt = {
        "1": {"class_type": "KilnLoadLoRA", "inputs": {"lora_name": source.name}},
        "2": {"class_type": "KilnSaveLoRA", "inputs": {"lora": ["1", 0], "filename": "again"}},
    }
    with server.client() as client:
        client.wait(client.queue(prompt, GRAPH))
    values = metadata(server.workspace / "models" / "loras" / "again.safetensors")
    assert json.loads(values["workflow"]) == GRAPH
    assert json.loads(values["prompt"]) == prompt
    assert values["ss_seed"] == "7"
    again = load_file(server.workspace / "models" / "loras" / "again.safetensors")
    assert again.keys() == lora.keys() and all(torch.equal(again[key], lora[key]) for key in again)


def test_every_new_input_may_be_missing_in_an_older_workflow() -> None:
    inputs = SaveLoRA.GET_SCHEMA().inputs
    assert [each.id for each in inputs if not each.optional] == ["lora", "filename"]
