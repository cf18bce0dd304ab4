"""Folders of pictures: repeats, masks and settings files."""

import os
from pathlib import Path

import pytest
from lora_kiln.training.basics import folders
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.basics.folders import folders_with
from lora_kiln.training.data.dataset_settings import DatasetSettings
from lora_kiln.training.data.picture_folder import folder_fingerprint, folder_repeats, read_folder
from lora_kiln.training.data.pictures import PictureFacts, picture_facts
from PIL import Image

MASKED = DatasetSettings(masked_loss=True)


def save(path: Path, size=(64, 48), color=(200, 20, 10), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def save_mask(path: Path, size=(64, 48)) -> Path:
    return save(path, size, 255, "L")


def names(root: Path, settings: DatasetSettings = MASKED) -> list[str]:
    return [picture.name for picture in read_folder(root, settings).pictures]


# ---------------------------------------------------------------- repeats


@pytest.mark.parametrize(
    ("path", "repeats"),
    [("10_cat", 10), ("10_cat/close", 10), ("3_x/5_y", 5), ("cat_10", 1), ("10cat", 1), ("0_cat", 1), ("plain", 1)],
)
def test_repeats_of_a_folder(tmp_path: Path, path: str, repeats: int) -> None:
    assert folder_repeats(tmp_path / path, tmp_path) == repeats


def test_names_above_the_chosen_folder_do_not_count(tmp_path: Path) -> None:
    assert folder_repeats(tmp_path / "9_above" / "set" / "sub", tmp_path / "9_above" / "set") == 1


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("masked_loss", [True, False])
@pytest.mark.parametrize("mask", ["a_mask.png", "a-masklabel.png", "a_mask.PNG", "a_mask.webp"])
def test_a_mask_file_belongs_to_its_picture_and_is_none(tmp_path: Path, mask: str, masked_loss: bool) -> None:
    save(tmp_path / "a.jpg")
    save_mask(tmp_path / mask)
    contents = read_folder(tmp_path, DatasetSettings(masked_loss=masked_loss))
    assert [picture.name for picture in contents.pictures] == ["a.jpg"] and not contents.problems
    assert contents.pictures[0].mask_path == tmp_path / mask


def test_a_name_like_a_masks_without_its_picture_is_a_picture(tmp_path: Path) -> None:
    save(tmp_path / "carnival_mask.png")
    save(tmp_path / "sub" / "carnival.png")
    assert names(tmp_path) == ["carnival_mask.png", "sub/carnival.png"]


def test_a_mask_of_another_aspect_ratio_is_said_for_its_picture(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png")
    save_mask(tmp_path / "a_mask.png", (48, 64))
    save_mask(tmp_path / "b_mask.png", (32, 24))
    contents = read_folder(tmp_path, MASKED)
    assert [picture.name for picture in contents.pictures] == ["b.png"]
    assert len(contents.problems) == 1
    assert "a.png is 64 x 48, but its mask a_mask.png is 48 x 64" in contents.problems[0]


def test_a_damaged_mask_is_said_where_masks_count(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "a_mask.png").write_bytes(b"no picture")
    assert "a_mask.png is not a picture" in read_folder(tmp_path, MASKED).problems[0]
    assert names(tmp_path, DatasetSettings()) == ["a.png"]


def test_a_picture_of_which_nothing_would_be_learned_is_said(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        save(tmp_path / f"{name}.png")
    save(tmp_path / "a_mask.png", color=0, mode="L")
    save(tmp_path / "b_mask.png", color=9, mode="L")
    save(tmp_path / "clear.png", color=(1, 2, 3, 0), mode="RGBA")
    said = read_folder(tmp_path, MASKED).problems
    assert names(tmp_path) == ["b.png", "c.png"]
    assert len(said) == 2 and "a.png has a mask, a_mask.png, that is black all over" in said[0]
    assert "clear.png is transparent all over" in said[1]
    for settings in (DatasetSettings(), DatasetSettings(masked_loss=True, unmasked_weight=0.1)):
        assert names(tmp_path, settings) == ["a.png", "b.png", "c.png", "clear.png"]


@pytest.mark.parametrize(("alpha", "has_mask"), [(255, False), (100, True)])
def test_what_is_transparent_is_a_mask(tmp_path: Path, alpha: int, has_mask: bool) -> None:
    save(tmp_path / "a.png", color=(1, 2, 3, alpha), mode="RGBA")
    assert read_folder(tmp_path, MASKED).pictures[0].has_mask is has_mask


def test_a_mask_file_goes_before_transparency(tmp_path: Path) -> None:
    from lora_kiln.training.data.buckets import Fit

    save(tmp_path / "a.png", color=(1, 2, 3, 51), mode="RGBA")
    fit = Fit(64, 48, 64, 48, 0, 0)
    picture = read_folder(tmp_path, MASKED).pictures[0]
    assert picture.load_mask(fit).max() == pytest.approx(0.2)
    save_mask(tmp_path / "a_mask.png")
    assert read_folder(tmp_path, MASKED).pictures[0].load_mask(fit).min() == 1


# ---------------------------------------------------------------- folders' own settings


def test_the_nearest_settings_count(tmp_path: Path) -> None:
    for name in ("top.png", "one/a.png", "one/deep/b.png"):
        save(tmp_path / name)
    (tmp_path / "dataset.toml").write_text('trigger_word = "top"\nrepeats = 2\nflip = true')
    (tmp_path / "one" / "dataset.toml").write_text('trigger_word = "one"\nrepeats = 3')
    (tmp_path / "one" / "deep" / "dataset.toml").write_text("flip = false")
    contents = read_folder(tmp_path, DatasetSettings(), repeats=10)
    said = {p.name: (p.folder.trigger_word, p.folder.flip, p.repeats) for p in contents.pictures}
    assert said == {
        "top.png": ("top", True, 20),
        "one/a.png": ("one", True, 30),
        "one/deep/b.png": ("one", False, 30),
    }
    root = tmp_path.name
    assert contents.settings_files == tuple(
        sorted(f"{root}/{each}" for each in ("dataset.toml", "one/dataset.toml", "one/deep/dataset.toml"))
    )


def test_repeats_in_the_file_go_before_the_folders_name(tmp_path: Path) -> None:
    save(tmp_path / "10_cat" / "a.png")
    (tmp_path / "10_cat" / "dataset.toml").write_text("repeats = 4")
    assert read_folder(tmp_path, DatasetSettings()).pictures[0].repeats == 4


@pytest.mark.parametrize("by_node", [True, False])
@pytest.mark.parametrize("by_file", [True, False])
def test_a_folder_may_say_that_it_is_for_regularisation(tmp_path: Path, by_node: bool, by_file: bool) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "dataset.toml").write_text(f"regularisation = {str(by_file).lower()}")
    assert read_folder(tmp_path, DatasetSettings(), by_node).pictures[0].is_regularisation is by_file


def test_masks_may_count_in_one_folder_alone(tmp_path: Path) -> None:
    for folder in ("on", "off"):
        save(tmp_path / folder / "a.png")
        save_mask(tmp_path / folder / "a_mask.png", (48, 64))
    (tmp_path / "on" / "dataset.toml").write_text("masked_loss = true")
    assert names(tmp_path, DatasetSettings()) == ["off/a.png"]


def test_all_that_is_wrong_in_all_files_is_said_at_once(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        save(tmp_path / "set" / folder / "a.png")
    (tmp_path / "set" / "one" / "dataset.toml").write_text('repeat = 3\nflip = "yes"\nrepeats = 0')
    (tmp_path / "set" / "two" / "dataset.toml").write_text("caption_dropout = 2.0")
    with pytest.raises(InputError) as caught:
        read_folder(tmp_path / "set", DatasetSettings())
    assert len(caught.value.problems) == 4
    said = str(caught.value)
    for part in (
        "set/one/dataset.toml: repeat is not known; did you mean repeats?",
        "set/one/dataset.toml: flip is 'yes'; it must be true or false.",
        "set/one/dataset.toml: repeats is 0; it must be from 1 to 10000.",
        "set/two/dataset.toml: caption_dropout is 2.0; it must be from 0 to 1; 0 turns it off.",
    ):
        assert part in said


# ---------------------------------------------------------------- while it reads


def test_every_picture_and_mask_is_examined_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png")
        save_mask(tmp_path / f"{name}_mask.png")
    seen, told = [], []

    def examine(path: Path) -> PictureFacts:
        seen.append(path.name)
        return picture_facts(path)

    read_folder(tmp_path, MASKED, examine=examine, on_picture=lambda *progress: told.append(progress))
    assert sorted(seen) == ["a.png", "a_mask.png", "b.png", "b_mask.png"] and told == [(0, 2), (1, 2)]


def test_reading_can_be_interrupted(tmp_path: Path) -> None:
    save(tmp_path / "a.png")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_folder(tmp_path, MASKED, on_picture=stop)


# ---------------------------------------------------------------- what is no picture of a person's


@pytest.mark.parametrize("folder", ["@eaDir/a.png", "#recycle", "__MACOSX", "$RECYCLE.BIN", ".thumbs"])
def test_what_systems_put_into_a_folder_is_left_alone(tmp_path: Path, folder: str) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / folder / "SYNOPHOTO_THUMB_M.jpg")
    contents = read_folder(tmp_path, MASKED)
    assert [picture.name for picture in contents.pictures] == ["a.png"] and not contents.problems
    assert folders_with(tmp_path, (".jpg",), 3) == []


@pytest.mark.parametrize("name", [b"\x83L\x83c.png", b"\x83L/a.png"])
def test_a_name_that_is_not_unicode_is_said(tmp_path: Path, name: bytes) -> None:
    good = save(tmp_path / "a.png")
    path = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(good.read_bytes())
    contents = read_folder(tmp_path, MASKED)
    assert [picture.name for picture in contents.pictures] == ["a.png"]
    assert len(contents.problems) == 1 and "not Unicode: rename it" in contents.problems[0]
    contents.problems[0].encode()
    assert folder_fingerprint(tmp_path) and folders_with(tmp_path, (".png",), 3) == [tmp_path]


def test_an_exchanged_picture_of_one_size_and_time_is_seen(tmp_path: Path) -> None:
    for name, color in (("a", (200, 20, 10)), ("b", (20, 200, 10))):
        save(tmp_path / f"{name}.bmp", color=color)
        os.utime(tmp_path / f"{name}.bmp", (1, 1))
    before = folder_fingerprint(tmp_path)
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (tmp_path / f"{old}.bmp").rename(tmp_path / f"{new}.bmp")
    assert folder_fingerprint(tmp_path) != before
    before = folder_fingerprint(tmp_path)
    save(tmp_path / "a.bmp", color=(1, 2, 3))
    os.utime(tmp_path / "a.bmp", (1, 1))
    assert folder_fingerprint(tmp_path) != before


# ---------------------------------------------------------------- names by case


@pytest.mark.parametrize("mask", ["A_mask.png", "a_MASK.png"])
def test_a_mask_finds_its_picture_whatever_its_case(tmp_path: Path, mask: str) -> None:
    save(tmp_path / "a.png")
    save_mask(tmp_path / mask)
    assert [picture.mask_path for picture in read_folder(tmp_path, MASKED).pictures] == [tmp_path / mask]


def test_of_pictures_that_differ_in_case_alone_each_has_its_own_mask(tmp_path: Path) -> None:
    for name in ("a.png", "A.png"):
        save(tmp_path / name)
    save_mask(tmp_path / "A_mask.png")
    contents = read_folder(tmp_path, MASKED)
    assert {each.name: each.mask_path for each in contents.pictures} == {
        "A.png": tmp_path / "A_mask.png",
        "a.png": None,
    }
    assert any(note.startswith("A.png and 1 more have names that differ in case") for note in contents.notes)


def test_a_settings_file_that_is_written_otherwise_is_said(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    (tmp_path / "Dataset.TOML").write_text("repeats = 5")
    assert read_folder(tmp_path, MASKED).notes == ("Dataset.TOML is not read: write the name as dataset.toml.",)


def test_a_caption_that_changed_within_a_tick_of_the_disk_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exFAT, whose times may be coarse, and whose files keep what else tells them apart."""
    monkeypatch.setattr(folders, "file_state", lambda stat: (stat.st_size, stat.st_mtime_ns))
    prints = set()
    for caption in ("cat", "dog"):
        (tmp_path / "a.txt").write_text(caption)
        os.utime(tmp_path / "a.txt", (1e9, 1e9))
        prints.add(folder_fingerprint(tmp_path))
    assert len(prints) == 2
