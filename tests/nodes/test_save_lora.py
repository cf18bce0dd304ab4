"""Save LoRA: the file, where it may lie, and that the host's list has it at once."""

from pathlib import Path

import folder_paths
import pytest
import torch
from lora_kiln.nodes.save_lora import SaveLoRA
from lora_kiln.training.export import LoRAModel
from lora_kiln.training.problems import InputError
from safetensors import safe_open
from safetensors.torch import load_file

LORA = LoRAModel({"lora_unet_a.alpha": torch.tensor(2.0)}, {"ss_seed": "7"}, "anna")


@pytest.fixture(autouse=True)
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/loras."""
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    return folder


def save(filename: str = "anna", lora=LORA) -> Path:
    return Path(SaveLoRA.execute(lora, filename).args[0])


def test_the_file_holds_the_lora_and_its_metadata(loras: Path) -> None:
    path = save()
    assert path == loras / "anna.safetensors"
    assert torch.equal(load_file(path)["lora_unet_a.alpha"], torch.tensor(2.0))
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_seed"] == "7"


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
