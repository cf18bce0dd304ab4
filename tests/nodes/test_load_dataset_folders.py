"""The folders that Load Dataset reads, refuses and offers, and which changes in them make it run again."""

from __future__ import annotations

from pathlib import Path

import pytest
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.training.basics.errors import InputError

from load_dataset_node import dataset_of, load, names, save

# ---------------------------------------------------------------- when it runs again


def fingerprint(**inputs) -> str:
    return LoadDataset.fingerprint_inputs(**{"folder": ["set"], "regularisation_folder": ["none"], **inputs})


def test_fingerprint_is_stable(pictures: Path) -> None:
    save(pictures)
    assert fingerprint() == fingerprint()


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "metadata.jsonl", "10_x/a.txt", "dataset.toml"])
def test_fingerprint_changes_with_a_caption(pictures: Path, name: str) -> None:
    save(pictures)
    (pictures / name).parent.mkdir(exist_ok=True)
    (pictures / name).write_text("before")
    before = fingerprint()
    (pictures / name).write_text("behind")
    assert fingerprint() != before


def test_fingerprint_changes_with_a_new_picture(pictures: Path) -> None:
    save(pictures)
    before = fingerprint()
    save(pictures, "b.png")
    assert fingerprint() != before


def test_fingerprint_changes_with_a_renamed_picture(pictures: Path) -> None:
    path = save(pictures)
    before = fingerprint()
    path.rename(pictures / "b.png")
    assert fingerprint() != before


def test_fingerprint_changes_with_the_regularisation_folder(folders: Path, pictures: Path) -> None:
    save(pictures)
    save(folders / "input" / "prior", "p.png")
    before = fingerprint(regularisation_folder=["prior"])
    save(folders / "input" / "prior", "q.png")
    assert fingerprint(regularisation_folder=["prior"]) != before


def test_fingerprint_knows_nothing_of_other_files(pictures: Path) -> None:
    save(pictures)
    before = fingerprint()
    (pictures / "notes.pdf").write_text("none of the trainer's business")
    assert fingerprint() == before


# ---------------------------------------------------------------- folders that cannot be used


def test_an_empty_folder_is_refused(pictures: Path) -> None:
    with pytest.raises(InputError, match="'set' holds no picture"):
        load()


def test_a_missing_folder_is_refused(pictures: Path) -> None:
    with pytest.raises(InputError, match="'elsewhere'.*no such folder"):
        load("elsewhere")


def test_neither_folder_nor_images_is_refused(folders: Path) -> None:
    with pytest.raises(InputError, match="no images are connected"):
        load("none")


def test_a_folder_without_a_readable_picture_is_refused_with_each_reason(pictures: Path) -> None:
    (pictures / "a.png").write_bytes(b"not a picture")
    (pictures / "b.jpg").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load()
    assert "no usable picture" in str(caught.value)
    assert "a.png is not a picture" in str(caught.value) and "b.jpg is an empty file" in str(caught.value)


def test_an_empty_regularisation_folder_is_refused(folders: Path, pictures: Path) -> None:
    save(pictures)
    (folders / "input" / "prior").mkdir()
    with pytest.raises(InputError, match="'prior' holds no usable picture"):
        load(regularisation_folder="prior")


OUTSIDE = ["../..", "../outside", "set/../../outside", "/etc", "/", "..", "//etc", "../input-too"]


@pytest.mark.parametrize("folder", OUTSIDE)
def test_a_path_outside_the_allowed_roots_is_refused(folders: Path, pictures: Path, folder: str) -> None:
    save(folders / "outside")
    save(folders / "input-too")
    with pytest.raises(InputError, match="lies outside the folders that may be read"):
        load(folder)


@pytest.mark.parametrize("folder", OUTSIDE)
def test_a_regularisation_path_outside_the_allowed_roots_is_refused(pictures: Path, folder: str) -> None:
    save(pictures)
    with pytest.raises(InputError, match="regularisation_folder.*lies outside"):
        load(regularisation_folder=folder)


def test_an_absolute_path_outside_the_allowed_roots_is_refused(folders: Path, pictures: Path) -> None:
    save(folders / "outside")
    with pytest.raises(InputError, match="lies outside"):
        load(str(folders / "outside"))


@pytest.mark.parametrize("folder", ["../..", "/etc"])
def test_the_host_hears_of_a_bad_path_before_the_run(folders: Path, folder: str) -> None:
    assert "lies outside" in str(LoadDataset.validate_inputs(folder=[folder]))


def test_the_host_accepts_a_good_path(pictures: Path) -> None:
    assert LoadDataset.validate_inputs(folder=["set"], regularisation_folder=["none"]) is True


def test_an_allowed_root_may_be_read(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(folders / "outside")
    monkeypatch.setenv("LORA_KILN_ROOTS", str(folders / "outside"))
    assert names(dataset_of(str(folders / "outside"))) == ["a.png"]


def test_the_list_offers_folders_of_pictures_only(folders: Path, pictures: Path) -> None:
    save(pictures, "10_cat/a.png")
    (folders / "input" / "texts").mkdir()
    (folders / "input" / "texts" / "a.txt").write_text("no picture")
    schema = LoadDataset.define_schema()
    assert next(each for each in schema.inputs if each.id == "folder").options == ["none", "set", "set/10_cat"]
