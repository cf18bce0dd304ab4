"""The folders that the server's owner allows: entries that are none are said where a person looks for them."""

import os
from pathlib import Path

import pytest
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.host.folders import ROOTS_VARIABLE, data_path, data_roots, wrong_roots


@pytest.fixture
def typo(folders: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A list of two folders, of which the second is misspelled."""
    (folders / "pictures").mkdir()
    monkeypatch.setenv(ROOTS_VARIABLE, os.pathsep.join([f" {folders / 'pictures'} ", str(folders / "pictuers"), ""]))
    return str(folders / "pictuers")


def test_a_wrong_entry_is_named_and_the_others_are_used(typo: str, folders: Path) -> None:
    assert typo in wrong_roots() and str(folders / "pictures'") not in wrong_roots()
    assert folders / "pictures" in data_roots()


def test_without_wrong_entries_nothing_is_said(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong_roots() == ""
    monkeypatch.setenv(ROOTS_VARIABLE, str(folders))
    assert wrong_roots() == ""


def test_an_entry_of_extra_model_paths_is_named_too(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "lora_kiln_datasets", (["/no/such"], set()))
    assert "lora_kiln_datasets names '/no/such'" in wrong_roots()


def test_an_error_about_a_folder_says_what_is_wrong_with_the_list(typo: str, folders: Path) -> None:
    for name in (str(folders / "elsewhere"), f"{typo}/set"):
        assert typo in str(LoadDataset.validate_inputs(folder=[name]))
    with pytest.raises(InputError, match="pictuers"):
        data_path("/etc/passwd", "folder", "Load Dataset")


def test_the_home_folder_may_be_written_short(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folders))
    monkeypatch.setenv("USERPROFILE", str(folders))
    monkeypatch.setenv(ROOTS_VARIABLE, "~/output")
    assert folders / "output" in data_roots() and wrong_roots() == ""
