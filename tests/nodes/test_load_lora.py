"""Load LoRA File: what it gives, what it refuses, and when it runs again."""

import os
from pathlib import Path

import folder_paths
import pytest
import torch
from lora_kiln.nodes.load_lora import LoadLoRA
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.lora.save import save_lora

from loras import random_lora
from models import sd15


@pytest.fixture(autouse=True)
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models/loras with one LoRA."""
    folder = tmp_path / "models" / "loras"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors", ".pt"}))
    save_lora(folder / "people" / "anna.safetensors", random_lora(sd15()), {"ss_seed": "7"})
    return folder


def options() -> list[str]:
    return LoadLoRA.define_schema().inputs[0].options


def test_the_lora_comes_with_its_metadata() -> None:
    lora, info = LoadLoRA.execute("people/anna.safetensors").args
    expected = random_lora(sd15())
    assert lora.keys() == expected.keys() and all(torch.equal(lora[key], expected[key]) for key in lora)
    assert lora.metadata["ss_seed"] == "7" and lora.name == "anna"
    assert "Kind: LoRA" in info and "Rank: 4" in info and "Alpha: 3" in info


def test_the_list_holds_safetensors_files_alone(loras: Path) -> None:
    (loras / "old.pt").write_bytes(b"x")
    assert options() == ["people/anna.safetensors"]


def test_the_list_holds_every_ending_that_the_host_reads_as_safetensors(
    loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "loras", ([str(loras)], folder_paths.supported_pt_extensions)
    )
    for name in ("berta.sft", "CARL.SAFETENSORS"):
        save_lora(loras / name, {"lora_unet_a.lora_down.weight": torch.ones(1, 2)}, {})
        assert LoadLoRA.execute(name).args[0]
    assert {*options()} == {"people/anna.safetensors", "berta.sft", "CARL.SAFETENSORS"}


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "people/../../x.safetensors", "old.pt", "b.safetensors"]
)
def test_nothing_outside_the_list_is_read(loras: Path, name: str) -> None:
    (loras.parent / "x.safetensors").write_bytes((loras / "people" / "anna.safetensors").read_bytes())
    (loras / "old.pt").write_bytes(b"x")
    with pytest.raises(InputError, match="lora_name is"):
        LoadLoRA.execute(name)


def test_a_file_that_is_no_lora_is_said(loras: Path) -> None:
    (loras / "b.safetensors").write_bytes(b"not a file of that kind")
    with pytest.raises(InputError, match="b.safetensors is no safetensors file"):
        LoadLoRA.execute("b.safetensors")


def test_it_runs_again_when_the_file_changes(loras: Path) -> None:
    path = loras / "people" / "anna.safetensors"
    before = LoadLoRA.fingerprint_inputs("people/anna.safetensors")
    assert LoadLoRA.fingerprint_inputs("people/anna.safetensors") == before
    os.utime(path, ns=(1, 1))
    assert LoadLoRA.fingerprint_inputs("people/anna.safetensors") != before
    assert LoadLoRA.fingerprint_inputs("gone.safetensors") is None
