"""The dataset on the page: what is shown of a folder, thumbnails, and captions that come back."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.training.basics import files
from lora_kiln.training.basics.errors import InputError, Refusal
from lora_kiln.training.data import dataset_page
from lora_kiln.training.data.dataset_page import describe, save_captions, thumbnail
from PIL import Image

from windows_files import WindowsFiles

SETTINGS = dict(resolution="64", bucket_step="16", shortest_side="64", longest_side="128")


@pytest.fixture
def cats(folders: Path) -> Path:
    """An empty folder `cats` in the host's input folder."""
    folder = folders / "input" / "cats"
    folder.mkdir()
    return folder


def draw(path: Path, size=(96, 64), color=(200, 20, 10), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def look_at(folder: str = "cats", **settings: str) -> dict:
    return describe({"folder": folder, **SETTINGS, **settings})


def shown(**settings: str) -> dict[str, dict]:
    return {picture["name"]: picture for picture in look_at(**settings)["pictures"]}


def entry(name: str, caption: str, before: str = "") -> dict[str, str]:
    return {"name": name, "caption": caption, "before": before}


def save_all(*entries: dict, **more) -> dict:
    return save_captions({"folder": "cats", "captions": list(entries), **more})


# ---------------------------------------------------------------- what is shown


def test_a_picture_is_shown_as_the_trainer_will_use_it(cats: Path) -> None:
    draw(cats / "10_x" / "a.png", (200, 64))
    (cats / "10_x" / "a.txt").write_text("a cat")
    answer = look_at()
    assert (answer["done"], answer["total"], answer["problems"], answer["locked"]) == (1, 1, [], "")
    picture = answer["pictures"][0]
    assert (picture["name"], picture["width"], picture["height"]) == ("10_x/a.png", 200, 64)
    assert (picture["caption"], picture["source"], picture["repeats"]) == ("a cat", "a.txt", 10)
    assert picture["bucket"] == [64, 64]
    left, top, width, height = picture["crop"]
    assert (top, height) == (0, 1) and width == pytest.approx(64 / 200) and left == pytest.approx((1 - width) / 2)
    json.dumps(answer, allow_nan=False)


def test_the_nodes_settings_decide_the_bucket(cats: Path) -> None:
    draw(cats / "a.png", (200, 100))
    assert shown(resolution="128")["a.png"]["bucket"] != shown()["a.png"]["bucket"]
    assert shown()["a.png"]["enlarged"] is False
    assert shown(resolution="512", longest_side="1024")["a.png"]["enlarged"] is True
    assert shown(extra_resolutions="512", longest_side="1024")["a.png"]["enlarged"] is True


def test_files_of_one_content_are_named(cats: Path) -> None:
    draw(cats / "a.png")
    draw(cats / "b.png", color=(1, 2, 3))
    (cats / "c.png").write_bytes((cats / "a.png").read_bytes())
    assert {name: each["same_as"] for name, each in shown().items()} == {"a.png": None, "b.png": None, "c.png": "a.png"}


def test_what_cannot_be_used_is_listed_with_the_reason(cats: Path) -> None:
    draw(cats / "a.png")
    (cats / "bad.png").write_bytes(b"nothing")
    draw(cats / "latin.png")
    (cats / "latin.txt").write_bytes(b"caf\xe9")
    for _ in range(2):  # the second time from memory
        problems = look_at()["problems"]
        assert any("bad.png" in line for line in problems) and any("latin.txt" in line for line in problems)


def test_a_caption_says_where_it_stands(cats: Path) -> None:
    for name in ("a", "b", "c"):
        draw(cats / f"{name}.png")
    (cats / "a.caption").write_text("of a")
    (cats / "metadata.jsonl").write_text(json.dumps({"file_name": "b.png", "text": "of b"}))
    assert [each["source"] for each in shown().values()] == ["a.caption", "metadata.jsonl", ""]


def test_a_large_folder_is_looked_at_in_parts(cats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        os.utime(draw(cats / f"{number}.png", color=(number, 0, 0)), (1, 1))
    (cats / "bad.png").write_bytes(b"nothing")
    os.utime(cats / "bad.png", (1, 1))
    monkeypatch.setattr(dataset_page, "ANSWER_SECONDS", 0.0)
    done = []
    for _ in range(10):
        answer = look_at()
        done.append(answer["done"])
        if answer["done"] == answer["total"]:
            break
    assert done == sorted(done) and len(done) > 2 and len(answer["pictures"]) == 4


def test_a_changed_picture_is_looked_at_again(cats: Path) -> None:
    os.utime(draw(cats / "a.png", (96, 64)), (1, 1))
    before = shown()["a.png"]
    draw(cats / "a.png", (64, 96))
    after = shown()["a.png"]
    assert (after["width"], after["height"]) == (64, 96) and after["version"] != before["version"]


# ---------------------------------------------------------------- requests that are refused

FOLDERS = [
    "",
    "..",
    "../..",
    "/etc",
    "cats/../..",
    "cats/../../output",
    "\\\\server\\share",
    "nowhere",
    "cats\0",
    "\ud800",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_outside_is_refused_everywhere(cats: Path, folder: str) -> None:
    draw(cats / "a.png")
    for ask in (
        lambda: look_at(folder),
        lambda: thumbnail({"folder": folder, "name": "a.png"}),
        lambda: save_captions({"folder": folder, "captions": [entry("a.png", "x")]}),
    ):
        with pytest.raises(InputError, match="folder"):
            ask()


@pytest.mark.parametrize("folder", [None, 7, ["cats"], {"a": 1}])
def test_a_folder_is_text(cats: Path, folder: object) -> None:
    with pytest.raises(InputError, match="folder"):
        save_captions({"folder": folder, "captions": [entry("a.png", "x")]})


NAMES = [
    *("", ".", "..", "../secret.png", "x/../a.png", "/a.png", "//a.png", "./a.png", "a.txt", "a.png/", "nowhere.png"),
    *("a.png\0", "..\\secret.png", ".hidden.png", "\ud800.png", "x//a.png", "A.PNG\u202e"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_picture_of_the_folder_is_refused(cats: Path, name: str) -> None:
    for path in (cats / "a.png", cats / ".hidden.png", cats.parent / "secret.png"):
        draw(path)
    (cats / "a.txt").write_text("of a")
    with pytest.raises(Refusal) as refusal:
        thumbnail({"folder": "cats", "name": name})
    assert refusal.value.status == 404
    with pytest.raises(InputError):
        save_all(entry(name, "written"))
    assert sorted(path.name for path in cats.parent.rglob("*.txt")) == ["a.txt"]
    assert (cats / "a.txt").read_text() == "of a"


def test_a_link_out_of_the_allowed_folders_is_not_followed(cats: Path, folders: Path) -> None:
    secret = draw(folders / "private" / "secret.png")
    (cats / "link.png").symlink_to(secret)
    (cats / "sub").symlink_to(secret.parent)
    (cats.parent / "away").symlink_to(secret.parent)
    for name in ("link.png", "sub/secret.png"):
        with pytest.raises(Refusal):
            thumbnail({"folder": "cats", "name": name})
    with pytest.raises(InputError, match="LORA_KILN_ROOTS"):
        look_at("away")
    with pytest.raises(InputError, match="no picture of this folder"):
        save_all(entry("sub/secret.png", "written"))
    assert [path.name for path in secret.parent.iterdir()] == ["secret.png"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("resolution", "63"),
        ("resolution", "1e3"),
        ("resolution", "-512"),
        ("resolution", "9" * 5000),
        ("resolution", "٥١٢"),
        ("bucket_step", "7"),
        ("longest_side", "999999999"),
        ("shortest_side", ""),
        ("shortest_side", "256"),
        ("extra_resolutions", "x"),
        ("extra_resolutions", "64," * 100),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(cats: Path, setting: str, value: str) -> None:
    with pytest.raises(InputError, match=setting):
        look_at(**{setting: value})


@pytest.mark.parametrize(
    "captions",
    [
        *(None, [], {}, "a", [None], [[]], [{"name": "a.png"}], [entry("a.png", "x") | {"before": None}]),
        *([entry("a.png", "x" * 20_001)], [entry("a.png", "\ud800")], [entry("a.png", "\0")]),
    ],
)
def test_what_is_no_caption_is_refused(cats: Path, captions: object) -> None:
    draw(cats / "a.png")
    with pytest.raises(InputError):
        save_captions({"folder": "cats", "captions": captions})
    assert [path.name for path in cats.iterdir()] == ["a.png"]


def test_all_that_is_wrong_with_captions_is_said_at_once(cats: Path) -> None:
    edits = [entry("a.png", "x"), {"name": "b.png", "before": 7}, entry("c.png", "\0")]
    with pytest.raises(InputError) as caught:
        save_all(*edits, overwrite="yes")
    said = [
        "captions[1].caption is missing.",
        "captions[1].before is 7;",
        "captions[2].caption is",
        "overwrite is 'yes';",
    ]
    assert len(caught.value.problems) == 4
    assert all(each.startswith(start) for each, start in zip(caught.value.problems, said, strict=True))


# ---------------------------------------------------------------- thumbnails


def test_a_thumbnail_is_small_upright_and_jpeg(cats: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    draw(cats / "a.jpg", (400, 200), exif=exif)
    content = thumbnail({"folder": "cats", "name": "a.jpg", "side": "100"})
    image = Image.open(io.BytesIO(content.data))
    assert content.kind == "image/jpeg" and image.format == "JPEG" and image.size == (50, 100)


@pytest.mark.parametrize("side", ["15", "1025", "x", "-1", ""])
def test_a_thumbnail_has_a_size_that_makes_sense(cats: Path, side: str) -> None:
    draw(cats / "a.png")
    with pytest.raises(InputError, match="side"):
        thumbnail({"folder": "cats", "name": "a.png", "side": side})


def test_a_damaged_picture_has_no_thumbnail(cats: Path) -> None:
    (cats / "a.png").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="not a picture"):
        thumbnail({"folder": "cats", "name": "a.png"})


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_a_caption_is_written_where_it_stood(cats: Path, ending: str) -> None:
    draw(cats / "a.png")
    (cats / f"a{ending}").write_text("old")
    assert save_all(entry("a.png", "new, caf\u00e9", "old")) == {"saved": ["a.png"], "failed": {}}
    assert (cats / f"a{ending}").read_text("utf-8") == "new, caf\u00e9\n"
    assert sorted(path.name for path in cats.iterdir()) == sorted(["a.png", f"a{ending}"])


def test_a_caption_from_metadata_gets_a_file_that_goes_before_it(cats: Path) -> None:
    draw(cats / "a.png")
    (cats / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "old"}))
    save_all(entry("a.png", "", "old"))
    assert shown()["a.png"]["caption"] == "" and shown()["a.png"]["source"] == "a.txt"


def test_a_file_that_changed_meanwhile_is_not_written_over(cats: Path) -> None:
    for name in ("a", "b", "c"):
        draw(cats / f"{name}.png")
        (cats / f"{name}.txt").write_text("old")
    (cats / "a.txt").write_text("theirs")
    (cats / "c.txt").write_bytes(b"caf\xe9")
    edits = [entry(f"{name}.png", "mine", "old") for name in ("a", "b", "c")]
    with pytest.raises(Refusal, match="changed on disk") as refusal:
        save_all(*edits)
    assert refusal.value.status == 409 and refusal.value.details == {"changed": {"a.png": "theirs", "c.png": None}}
    assert (cats / "b.txt").read_text() == "old"
    assert save_all(*edits, overwrite=True)["saved"] == ["a.png", "b.png", "c.png"]
    assert (cats / "a.txt").read_text() == "mine\n"


def test_where_nothing_may_be_written_nothing_is(cats: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(folders / "more" / "a.png")
    monkeypatch.setenv("LORA_KILN_ROOTS", str(folders / "more"))
    assert "LORA_KILN_WRITE" in look_at(str(folders / "more"))["locked"]
    request = {"folder": str(folders / "more"), "captions": [entry("a.png", "new")]}
    with pytest.raises(InputError, match="LORA_KILN_WRITE"):
        save_captions(request)
    monkeypatch.setenv("LORA_KILN_WRITE", "1")
    assert save_captions(request)["saved"] == ["a.png"] and look_at(str(folders / "more"))["locked"] == ""


def test_a_file_that_cannot_be_written_is_named(cats: Path) -> None:
    draw(cats / "a.png")
    draw(cats / "b.png")
    (cats / "a.txt").mkdir()
    answer = save_all(entry("a.png", "x"), entry("b.png", "y"))
    assert answer["saved"] == ["b.png"] and "cannot be written" in answer["failed"]["a.png"]


def test_the_node_runs_again_after_a_caption_was_saved(cats: Path) -> None:
    draw(cats / "a.png")
    seen = [LoadDataset.fingerprint_inputs(folder=["cats"])]
    for before, caption in (("", "one"), ("one", "two")):  # as long as each other
        save_all(entry("a.png", caption, before))
        seen.append(LoadDataset.fingerprint_inputs(folder=["cats"]))
    assert len(set(seen)) == 3


def test_edits_of_two_pictures_of_one_name_are_both_kept(cats: Path) -> None:
    draw(cats / "a.jpg")
    draw(cats / "a.png", color=(1, 2, 3))
    (cats / "a.txt").write_text("of which")
    answer = save_all(entry("a.jpg", "the first", "of which"), entry("a.png", "the second", "of which"))
    assert answer == {"saved": ["a.jpg", "a.png"], "failed": {}}
    assert {name: each["caption"] for name, each in shown().items()} == {"a.jpg": "the first", "a.png": "the second"}


def test_exchanged_pictures_of_one_size_and_time_are_seen(cats: Path) -> None:
    for name, color in (("a", (200, 20, 10)), ("b", (20, 200, 10))):
        os.utime(draw(cats / f"{name}.bmp", color=color), (1, 1))
    before = {name: each["version"] for name, each in shown().items()}
    for old, new in (("a", "c"), ("b", "a"), ("c", "b")):
        (cats / f"{old}.bmp").rename(cats / f"{new}.bmp")
    after = {name: each["version"] for name, each in shown().items()}
    assert after == {"a.bmp": before["b.bmp"], "b.bmp": before["a.bmp"]}


@pytest.mark.parametrize("name", [f"{'x' * 300}.png", f"{'x/' * 3000}a.png", "a.png/b.png"])
def test_a_name_that_no_file_has_is_answered_in_words(cats: Path, name: str) -> None:
    draw(cats / "a.png")
    with pytest.raises(Refusal) as caught:
        thumbnail({"folder": "cats", "name": name})
    assert caught.value.status == 404 and len(str(caught.value)) < 300
    with pytest.raises(InputError, match="is no picture of this folder") as refused:
        save_all(entry(name, "text"))
    assert len(str(refused.value)) < 400
    for folder in (name, f"cats/{name}", str(cats / name)):
        with pytest.raises(InputError):
            describe({"folder": folder})


def test_captions_that_are_held_are_waited_for_together(
    cats: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for name in "abc":
        draw(cats / f"{name}.png")
        (cats / f"{name}.txt").write_text("held")
    windows_files.hold("*.txt")
    answer = save_all(*(entry(f"{name}.png", "new", "held") for name in "abc"))
    assert len(answer["failed"]) == 3 and 0 < sum(waits) <= files.PATIENCE_SECONDS


def test_saving_captions_sweeps_what_a_killed_save_left(cats: Path) -> None:
    draw(cats / "a.png")
    (cats / ".b.txt.writing").write_text("half")
    os.utime(cats / ".b.txt.writing", (1, 1))
    save_all(entry("a.png", "text"))
    assert {path.name for path in cats.iterdir()} == {"a.png", "a.txt"}
