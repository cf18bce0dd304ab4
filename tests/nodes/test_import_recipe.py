"""Import Recipe: files of the input folder, LoRA files and pasted text, through the node."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from lora_kiln.nodes.import_recipe import ImportRecipe
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig
from safetensors.torch import save_file

TOML = "network_dim = 12\nlearning_rate = 3e-4\ncolor_aug = true\n"
METADATA = {
    "ss_network_dim": "20",
    "ss_network_alpha": "10",
    "ss_learning_rate": "0.0002",
    "ss_text_encoder_lr": "None",
}


@pytest.fixture
def loras(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's only folder of LoRAs."""
    import folder_paths

    folder = folders / "loras"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("loras", None)
    folder_paths.cache_helper.clear()
    yield folder
    folder_paths.filename_list_cache.pop("loras", None)


def choices() -> list[str]:
    file = ImportRecipe.define_schema().inputs[0]
    assert file.options is not None
    return list(file.options)


def test_a_file_becomes_a_config_and_a_report(folders: Path, loras: Path) -> None:
    (folders / "input" / "kohya").mkdir()
    (folders / "input" / "kohya" / "fox.toml").write_text(TOML)
    assert "input/kohya/fox.toml" in choices()
    output = ImportRecipe.execute("input/kohya/fox.toml", "")
    config, report = output.args
    assert isinstance(config, LoRAConfig) and (config.adapter.rank, config.optimization.learning_rate) == (12, 3e-4)
    assert "color_aug = true: colours" in report
    assert output.ui.as_dict()["text"] == (report,)


def test_pasted_text_becomes_a_config(folders: Path) -> None:
    assert ImportRecipe.execute("none", TOML).args[0].adapter.rank == 12


def test_a_loras_metadata_becomes_a_config(loras: Path) -> None:
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(2, 2)}, loras / "fox.safetensors", METADATA)
    assert "loras/fox.safetensors" in choices()
    config = ImportRecipe.execute("loras/fox.safetensors").args[0]
    assert (config.adapter.rank, config.adapter.alpha, config.optimization.learning_rate) == (20, 10.0, 2e-4)
    assert config.optimization.text_encoder_learning_rate == 0.0


def test_a_loras_text_encoder_layers_count(loras: Path) -> None:
    tensors = {"lora_te_a.lora_down.weight": torch.zeros(2, 2)}
    save_file(tensors, loras / "fox.safetensors", METADATA)
    assert ImportRecipe.execute("loras/fox.safetensors").args[0].optimization.text_encoder_learning_rate == 2e-4


@pytest.mark.parametrize("ending", ["toml", "json", "yaml", "yml"])
def test_recipe_files_are_offered(folders: Path, loras: Path, ending: str) -> None:
    (folders / "input" / f"a.{ending}").write_text("")
    (folders / "input" / "a.txt").write_text("")
    assert choices() == ["none", f"input/a.{ending}"]


def test_a_file_under_an_allowed_root_is_offered_and_read(
    folders: Path, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folders / "more"
    root.mkdir()
    (root / "a.toml").write_text(TOML)
    monkeypatch.setenv("LORA_KILN_ROOTS", str(root))
    assert str(root / "a.toml") in choices()
    assert ImportRecipe.execute(str(root / "a.toml")).args[0].adapter.rank == 12


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("none", " \n", "file is 'none' and text is empty"),
        ("input/a.toml", TOML, "both given"),
        ("input/b.toml", "", "no such file"),
        ("input/../outside.toml", "", "outside"),
        ("/etc/passwd.toml", "", "outside"),
        ("input/secret.txt", "", "must end with"),
        ("input/a\0.toml", "", "not seen"),
        ("loras/../a.safetensors", "", "no .safetensors file"),
    ],
)
def test_what_cannot_be_read_is_refused(folders: Path, loras: Path, file: str, text: str, what: str) -> None:
    (folders / "input" / "a.toml").write_text(TOML)
    (folders / "outside.toml").write_text(TOML)
    (folders / "input" / "secret.txt").write_text(TOML)
    with pytest.raises(InputError, match=what):
        ImportRecipe.execute(file, text)


@pytest.mark.parametrize("file", ["input/../outside.toml", "/etc/passwd.json", "loras/none.safetensors"])
def test_a_path_outside_is_refused_before_anything_runs(folders: Path, loras: Path, file: str) -> None:
    assert isinstance(ImportRecipe.validate_inputs(file), str)


def test_a_good_choice_passes_validation(folders: Path, loras: Path) -> None:
    (folders / "input" / "a.toml").write_text(TOML)
    assert ImportRecipe.validate_inputs("input/a.toml") is True
    assert ImportRecipe.validate_inputs("none") is True


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"network_dim = \xff\xfe", "UTF-8"), (b"#" * 1_000_001, "larger than"), (b"", "network_dim|empty")],
)
def test_bad_bytes_are_refused_by_their_fault(folders: Path, loras: Path, content: bytes, what: str) -> None:
    (folders / "input" / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=what):
        ImportRecipe.execute("input/a.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        (200).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"{{{{",
        (20_000).to_bytes(8, "little") + b"[" * 20_000,
        (21).to_bytes(8, "little") + b'{"__metadata__": [1]}',
    ],
)
def test_a_damaged_lora_is_refused(loras: Path, content: bytes) -> None:
    (loras / "bad.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="bad.safetensors is (no safetensors file|cut short)"):
        ImportRecipe.execute("loras/bad.safetensors")


def test_a_lora_without_metadata_is_refused(loras: Path) -> None:
    save_file({"a": torch.zeros(1)}, loras / "plain.safetensors")
    with pytest.raises(InputError, match="says nothing of how it was trained"):
        ImportRecipe.execute("loras/plain.safetensors")


def test_a_changed_file_runs_again(folders: Path) -> None:
    path = folders / "input" / "a.toml"
    path.write_text(TOML)
    before = ImportRecipe.fingerprint_inputs("input/a.toml", "")
    assert ImportRecipe.fingerprint_inputs("input/a.toml", "") == before
    os.utime(path, ns=(1, 1))
    assert ImportRecipe.fingerprint_inputs("input/a.toml", "") != before
    assert ImportRecipe.fingerprint_inputs("none", "a") != ImportRecipe.fingerprint_inputs("none", "b")


def test_a_contradiction_names_the_files_keys(folders: Path) -> None:
    text = json.dumps({"LoRA_type": "Standard", "min_snr_gamma": 5, "debiased_estimation_loss": True})
    with pytest.raises(InputError, match="In the file: min_snr_gamma, debiased_estimation_loss"):
        ImportRecipe.execute("none", text)


# ---------------------------------------------------------------- changes by hand


def test_changes_by_hand_are_in_the_config_and_the_report(folders: Path, loras: Path) -> None:
    (folders / "input" / "a.toml").write_text(TOML)
    config, report = ImportRecipe.execute("input/a.toml", "", "rank=9 steps=2000\nseed = 7").args
    assert (config.adapter.rank, config.optimization.steps, config.run.seed, config.optimization.learning_rate) == (
        9,
        2000,
        7,
        3e-4,
    )
    assert "Changed by hand\n- rank = 9 (was 12)\n- steps = 2000" in report


def test_bad_changes_are_refused_before_anything_runs(folders: Path, loras: Path) -> None:
    (folders / "input" / "a.toml").write_text(TOML)
    assert "did you mean rank?" in str(ImportRecipe.validate_inputs("input/a.toml", "rnk=9"))
    assert ImportRecipe.validate_inputs("input/a.toml", "rank=9") is True
    with pytest.raises(InputError, match="did you mean rank?"):
        ImportRecipe.execute("input/a.toml", "", "rnk=9")


def test_older_workflows_have_no_changes(folders: Path) -> None:
    inputs = ImportRecipe.define_schema().inputs
    assert [each.id for each in inputs] == ["file", "text", "changes"] and inputs[-1].optional
    assert ImportRecipe.execute("none", TOML, None).args[0].adapter.rank == 12


# ---------------------------------------------------------------- the pack's own settings of a folder


@pytest.mark.parametrize("name", ["dataset.toml", "10_fox/dataset.toml", "Dataset.TOML"])
def test_a_folders_settings_are_no_recipe(folders: Path, loras: Path, name: str) -> None:
    path = folders / "input" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("repeats = 3\n")
    assert choices() == ["none"]
    with pytest.raises(InputError, match="holds Load Dataset's settings for its folder"):
        ImportRecipe.execute(f"input/{name}")
    assert "another name" in str(ImportRecipe.validate_inputs(f"input/{name}"))


def test_every_input_has_a_tooltip() -> None:
    assert all(each.tooltip for each in ImportRecipe.define_schema().inputs)
