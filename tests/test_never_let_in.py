"""Every place that takes a name or a path from a workflow, against every trick with names."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_kiln.nodes.caption_images import CaptionImages
from lora_kiln.nodes.import_recipe import ImportRecipe
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.nodes.load_lora import LoadLoRA
from lora_kiln.nodes.save_lora import SaveLoRA
from lora_kiln.nodes.train_lora import TrainLoRA
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data.caption_files import write_sidecar
from lora_kiln.training.data.dataset import DatasetSettings
from lora_kiln.training.data.picture_folder import folder_fingerprint, read_folder
from lora_kiln.training.host import may_write
from PIL import Image

TRICKS = {
    "above": "..",
    "above a folder": "set/../../outside",
    "above, in the middle": "set/../set",
    "backslashes": "..\\outside",
    "absolute": "/etc/passwd",
    "absolute, with two slashes": "//etc/passwd",
    "UNC": "\\\\server\\share",
    "UNC with slashes": "//server/share",
    "drive": "C:\\Windows",
    "drive, relative": "C:set",
    "home": "~/../../etc",
    "device": "CON",
    "device with an ending": "set/nul.txt",
    "device in full width": "ＣＯＮ",
    "device with a raised digit": "COM¹",
    "dots in full width": "．．/outside",
    "dots in one character": "‥/outside",
    "slash in full width": "set／..／..／outside",
    "division slash": "set∕outside",
    "small backslash": "set﹨outside",
    "null": "set\0.png",
    "line": "set\nset",
    "right to left": "set\u202egnp",
    "no width": "se\u200bt",
    "half a character": "set\ud800",
    "dot at the end": "set.",
    "space at the end of a part": "set /x",
    "empty part": "set//x",
    "stream": "set:stream",
    "long name": "x" * 300,
    "long path": "set/" * 2000 + "x",
    "link out": "link-out",
    "through a link": "link-out/deeper/still",
}


@pytest.fixture
def place(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's folders, each with a link that leads out of it and beside what it must not reach."""
    import folder_paths

    outside = folders / "outside"
    for folder in (outside, outside / "deeper"):
        folder.mkdir()
        Image.new("RGB", (32, 32)).save(folder / "secret.png")
        (folder / "recipe.toml").write_text("network_dim = 4\n")
    for kind in ("loras", "captioners"):
        (folders / "models" / kind).mkdir(parents=True)
        paths = ([str(folders / "models" / kind)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, paths)
    for inside in (folders / "input", folders / "models" / "loras"):
        (inside / "set").mkdir()
        (inside / "link-out").symlink_to(outside)
    Image.new("RGB", (32, 32)).save(folders / "input" / "set" / "a.png")
    folder_paths.filename_list_cache.clear()
    return folders


ENTRIES: dict[str, Callable[[str], object]] = {
    "Load Dataset: folder": lambda name: LoadDataset.execute(folder=[name], resolution=[64]),
    "Load Dataset: folder, by its fingerprint": lambda name: LoadDataset.fingerprint_inputs(folder=[name]),
    "Load Dataset: regularisation_folder": lambda name: LoadDataset.execute(
        folder=["set"], regularisation_folder=[name], resolution=[64]
    ),
    "Import Recipe: file": lambda name: ImportRecipe.execute(f"{name}/recipe.toml"),
    "Import Recipe: input/": lambda name: ImportRecipe.execute(f"input/{name}/recipe.toml"),
    "Import Recipe: loras/": lambda name: ImportRecipe.execute(f"loras/{name}.safetensors"),
    "Import Recipe: file, by its fingerprint": lambda name: ImportRecipe.fingerprint_inputs(f"{name}/recipe.toml"),
    "Load LoRA File: lora_name": lambda name: LoadLoRA.execute(f"{name}.safetensors"),
    "Save LoRA: filename": lambda name: SaveLoRA.execute({"a": torch.ones(1)}, f"{name}/file"),
    "Train LoRA: name": lambda name: TrainLoRA.execute(*[None] * 4, None, f"{name}/file"),  # type: ignore[arg-type]
    "Caption Images: captioner": lambda name: CaptionImages.execute(None, name, "all", "no"),  # type: ignore[arg-type]
}
CHECKS: dict[str, Callable[[str], object]] = {
    "Load Dataset: folder": lambda name: LoadDataset.validate_inputs(folder=[name]),
    "Load Dataset: regularisation_folder": lambda name: LoadDataset.validate_inputs(regularisation_folder=[name]),
    "Import Recipe: file": lambda name: ImportRecipe.validate_inputs(f"{name}/recipe.toml"),
    "Import Recipe: input/": lambda name: ImportRecipe.validate_inputs(f"input/{name}/recipe.toml"),
    "Import Recipe: loras/": lambda name: ImportRecipe.validate_inputs(f"loras/{name}.safetensors"),
    "Save LoRA: filename": lambda name: SaveLoRA.validate_inputs(f"{name}/file"),
    "Train LoRA: name": lambda name: TrainLoRA.validate_inputs(f"{name}/file"),
    "Caption Images: captioner": lambda name: CaptionImages.validate_inputs(name),
}


def everything(folder: Path) -> set[Path]:
    """All files and folders but the cache's."""
    return {path for path in folder.rglob("*") if "user" not in path.relative_to(folder).parts}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("entry", [name for name in ENTRIES if not name.startswith("Caption")])
def test_no_trick_gets_in(place: Path, entry: str, trick: str) -> None:
    before = everything(place)
    with pytest.raises(InputError):
        ENTRIES[entry](TRICKS[trick])
    assert everything(place) == before


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("entry", CHECKS)
def test_the_host_hears_of_it_before_the_run(place: Path, entry: str, trick: str) -> None:
    said = CHECKS[entry](TRICKS[trick])
    assert isinstance(said, str) and "cannot be used" in said


@pytest.mark.parametrize("value", [7, 1.5, True, {}, [["set"]], {"a": 1}])
@pytest.mark.parametrize("entry", ["folder", "regularisation_folder", "filename", "name", "captioner", "file"])
def test_what_is_no_text_is_refused_in_words(place: Path, entry: str, value: object) -> None:
    node = {"filename": SaveLoRA, "name": TrainLoRA, "captioner": CaptionImages, "file": ImportRecipe}
    said = node.get(entry, LoadDataset).validate_inputs(**{entry: value})  # type: ignore[arg-type]
    assert isinstance(said, str) and "no text" in said


@pytest.mark.parametrize("entry", CHECKS)
def test_an_honest_name_gets_in(place: Path, entry: str) -> None:
    (place / "input" / "set" / "recipe.toml").write_text("network_dim = 4\n")
    (place / "models" / "loras" / "set.safetensors").touch()
    (place / "models" / "captioners" / "set").mkdir()
    (place / "models" / "captioners" / "set" / "config.json").write_text("{}")
    assert CHECKS[entry]("set") is True


# ---------------------------------------------------------------- links among the data


@pytest.fixture
def linked(place: Path) -> Path:
    """A folder of pictures with links of each kind that lead out of the input folder."""
    secrets = place / "outside"
    (secrets / "words.txt").write_text("the secret words")
    (secrets / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "the secret words"}')
    folder = place / "input" / "set"
    Image.new("RGB", (32, 32)).save(folder / "b.png")
    (folder / "a.txt").symlink_to(secrets / "words.txt")
    (folder / "metadata.jsonl").symlink_to(secrets / "metadata.jsonl")
    (folder / "secret.png").symlink_to(secrets / "secret.png")
    (folder / "more").symlink_to(secrets)
    (folder / "gone.png").symlink_to(secrets / "nothing.png")
    return folder


def test_nothing_comes_in_through_a_link(linked: Path) -> None:
    dataset = LoadDataset.execute(folder=["set"], resolution=[64]).args[0]
    assert [(picture.name, picture.caption) for picture in dataset.pictures] == [("b.png", "")]
    assert {problem.split(" is a link")[0] for problem in dataset.problems} == {
        *("a.txt", "metadata.jsonl", "secret.png", "more", "gone.png")
    }


def test_settings_behind_a_link_are_refused(linked: Path) -> None:
    (linked.parent.parent / "outside" / "dataset.toml").write_text("repeats = 3")
    (linked / "dataset.toml").symlink_to(linked.parent.parent / "outside" / "dataset.toml")
    with pytest.raises(InputError, match="dataset.toml is a link that leads out"):
        LoadDataset.execute(folder=["set"], resolution=[64])


def test_links_between_allowed_folders_are_followed(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_KILN_ROOTS", str(linked.parent.parent / "outside"))
    dataset = LoadDataset.execute(folder=["set"], resolution=[64]).args[0]
    assert {"a.png", "b.png", "secret.png", "more/secret.png"} < {picture.name for picture in dataset.pictures}
    assert dataset.pictures[0].caption == "the secret words"


def test_captions_are_not_written_through_a_link(place: Path) -> None:
    folder, outside = place / "input" / "set", place / "outside"
    for name in (".a.txt.writing", "a.txt"):
        (folder / name).symlink_to(outside / "victim")
    assert write_sidecar(folder / "a.png", "a cat", overwrite=True)
    assert (folder / "a.txt").read_text() == "a cat\n" and not (outside / "victim").exists()
    assert may_write(folder / "a.png") and not may_write(place / "input" / "link-out" / "secret.png")


def test_a_lora_is_not_written_through_a_link(place: Path) -> None:
    (place / "models" / "loras" / ".anna.safetensors.writing").symlink_to(place / "outside" / "victim")
    assert Path(str(SaveLoRA.execute({"a": torch.ones(1)}, "anna").args[0])).is_file()
    assert not (place / "outside" / "victim").exists()


def test_folders_of_extra_model_paths_are_allowed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    outside = place / "outside"
    with pytest.raises(InputError, match="LORA_KILN_ROOTS"):
        LoadDataset.execute(folder=[str(outside)], resolution=[64])
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "lora_kiln_datasets", ([str(outside)], set()))
    assert len(LoadDataset.execute(folder=[str(outside)], resolution=[64]).args[0].pictures) == 2


def test_a_folder_read_alone_lets_no_link_out(linked: Path) -> None:
    assert [picture.name for picture in read_folder(linked, DatasetSettings()).pictures] == ["b.png"]
    assert folder_fingerprint(linked)
