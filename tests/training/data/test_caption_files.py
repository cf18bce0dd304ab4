"""Which caption file belongs to which picture: what a person put beside a picture is read, or named."""

import json
import unicodedata
from pathlib import Path

import pytest
from lora_kiln.training.data.caption_files import CaptionFiles, write_sidecar
from lora_kiln.training.data.dataset_settings import DatasetSettings
from lora_kiln.training.data.picture_folder import FolderContents, read_folder
from PIL import Image

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def draw(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(folder / name, format="PNG")


def read(folder: Path) -> FolderContents:
    return read_folder(folder, DatasetSettings())


def captions(folder: Path) -> dict[str, str]:
    return {picture.name: picture.caption for picture in read(folder).pictures}


def first_file(picture: Path) -> Path | None:
    return next(iter(CaptionFiles(picture.parent.iterdir()).of(picture)), None)


# ---------------------------------------------------------------- reading


def test_text_files_come_before_caption_files(tmp_path: Path) -> None:
    picture = tmp_path / "a.b.png"
    (tmp_path / "a.b.caption").write_text("second")
    assert first_file(picture) == tmp_path / "a.b.caption"
    (tmp_path / "a.b.txt").write_text("first")
    assert first_file(picture) == tmp_path / "a.b.txt"


def test_a_picture_without_a_caption_file(tmp_path: Path) -> None:
    assert first_file(tmp_path / "a.png") is None


@pytest.mark.parametrize("file", ["a.TXT", "A.txt", "a.png.txt", "a.PNG.Caption"])
def test_a_caption_is_found_by_any_name_that_means_its_picture(tmp_path: Path, file: str) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / file).write_text("a red fox")
    contents = read(tmp_path)
    assert contents.pictures[0].caption == "a red fox" and contents.pictures[0].caption_file == tmp_path / file
    assert not contents.problems


@pytest.mark.parametrize(("picture", "text"), [(NFC, NFD), (NFD, NFC)])
def test_both_unicode_forms_of_a_name_are_one(tmp_path: Path, picture: str, text: str) -> None:
    draw(tmp_path, f"{picture}.png")
    (tmp_path / f"{text}.txt").write_text("a cup")
    assert list(captions(tmp_path).values()) == ["a cup"] and not read(tmp_path).problems


def test_pictures_that_differ_in_case_alone_keep_their_own_captions(tmp_path: Path) -> None:
    draw(tmp_path, "a.png", "A.png", "b.png", "B.png")
    for name in ("a.txt", "A.TXT", "b.txt"):
        (tmp_path / name).write_text(f"of {name[0]}")
    assert captions(tmp_path) == {"a.png": "of a", "A.png": "of A", "b.png": "of b", "B.png": ""}


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_a_json_file_may_hold_the_caption(tmp_path: Path, key: str) -> None:
    draw(tmp_path, "c.png", "d.png")
    (tmp_path / "c.json").write_text(json.dumps({key: "a green owl\r\n"}))
    (tmp_path / "d.json").write_text(json.dumps({key: "not this"}))
    (tmp_path / "d.txt").write_text("but this")
    assert captions(tmp_path) == {"c.png": "a green owl", "d.png": "but this"} and not read(tmp_path).problems


@pytest.mark.parametrize("content", ["{}", '{"tags": ["a"]}', "no json", "[" * 100_000, '{"text": "a\\u0000"}'])
def test_json_files_without_a_caption_are_said_once(tmp_path: Path, content: str) -> None:
    draw(tmp_path, "c.png", "d.png", "e.png")
    for name in "cde":
        (tmp_path / f"{name}.json").write_text(content)
    (tmp_path / "e.txt").write_text("needs none")
    contents = read(tmp_path)
    assert len(contents.pictures) == 3 and len(contents.notes) == 1
    assert contents.notes[0].startswith("c.json and 1 more hold no caption")


WORKFLOW = json.dumps({"nodes": ["KSampler"] * 20_000})


@pytest.mark.parametrize("content", [WORKFLOW.encode(), b'{"text": "caf\xe9"}', b" " * 5_000_000, None])
def test_a_json_file_refuses_no_picture(tmp_path: Path, content: bytes | None) -> None:
    set_folder, file = tmp_path / "set", tmp_path / "set" / "a.json"
    draw(set_folder, "a.png")
    if content is None:
        (tmp_path / "secret.json").write_text('{"text": "secret"}')
        file.symlink_to(tmp_path / "secret.json")
    else:
        file.write_bytes(content)
    assert captions(set_folder) == {"a.png": ""}
    assert [said.startswith("a.json holds no caption") for said in read(set_folder).notes] == [True]


def test_a_caption_in_a_large_json_file_is_read(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "a.json").write_text(json.dumps({"workflow": WORKFLOW, "caption": "a cat"}))
    assert captions(tmp_path) == {"a.png": "a cat"}


def test_captions_that_belong_to_no_picture_are_said_with_count_and_first(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "texts").mkdir()
    for name in ("b.txt", "c.caption", "a.txt", "texts/a.txt"):
        (tmp_path / name).write_text("of whom")
    notes = read(tmp_path).notes
    assert len(notes) == 1 and notes[0].startswith("b.txt and 2 more belong to no picture")
    for name in ("c.caption", "texts/a.txt"):
        (tmp_path / name).unlink()
    assert read(tmp_path).notes == ("b.txt belongs to no picture: name a caption as its picture.",)


@pytest.mark.parametrize(("read_file", "other"), [("a.txt", "a.caption"), ("a.txt", "A.txt"), ("a.png.txt", "a.txt")])
def test_a_second_caption_of_a_picture_is_said(tmp_path: Path, read_file: str, other: str) -> None:
    draw(tmp_path, "a.png", "b.png")
    (tmp_path / other).write_text("second")
    assert captions(tmp_path)["a.png"] == "second" and not read(tmp_path).problems
    (tmp_path / read_file).write_text("first")
    assert captions(tmp_path)["a.png"] == "first"
    (note,) = read(tmp_path).notes
    assert note.startswith(f"{other} is not read, as another caption file of the picture goes before")


def test_a_caption_of_an_unusable_picture_has_its_picture(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    (tmp_path / "b.txt").write_text("of b")
    assert len(read(tmp_path).problems) == 1 and "b.png is not a picture" in read(tmp_path).problems[0]


@pytest.mark.parametrize("name", ["captions.jsonl", "metadata.csv"])
def test_lists_of_captions_that_are_not_read_are_said(tmp_path: Path, name: str) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / name).write_text("a.png,a cat")
    assert read(tmp_path).notes == (f"{name} is not read: put captions into .txt files or metadata.jsonl.",)


def test_a_caption_beside_two_pictures_is_said(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "a.png")
    (tmp_path / "a.txt").write_text("of which")
    assert captions(tmp_path) == {"a.jpg": "of which", "a.png": "of which"}
    (note,) = read(tmp_path).notes
    assert note.startswith("a.txt stands beside several pictures, which share a caption") and "a.png.txt" in note
    (tmp_path / "a.png.txt").write_text("of the second")
    assert captions(tmp_path) == {"a.jpg": "of which", "a.png": "of the second"} and not read(tmp_path).problems


# ---------------------------------------------------------------- metadata.jsonl


def entries(folder: Path, *rows: dict[str, str], name: str = "metadata.jsonl") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize(
    ("picture", "entry"),
    [
        ("x1.png", "train/x1.png"),
        ("x1.png", "./x1.png"),
        ("sub/x1.png", "sub\\x1.png"),
        ("sub/x1.png", "train/sub/x1.png"),
        ("IMG_1.PNG", "img_1.png"),
        ("x1.png", "/home/me/train/x1.png"),
        ("x1.png", "C:\\sets\\Train\\x1.png"),
        (f"{NFD}.png", f"{NFC}.png"),
        ("train/x1.png", "train/x1.png"),
    ],
)
def test_an_entry_finds_its_picture_however_it_is_written(tmp_path: Path, picture: str, entry: str) -> None:
    draw(tmp_path / "train", picture)
    entries(tmp_path / "train", dict(file_name=entry, text="a cat"))
    assert captions(tmp_path / "train") == {picture: "a cat"} and not read(tmp_path / "train").problems
    assert list(captions(tmp_path).values()) == ["a cat"] and not read(tmp_path).problems


def test_musubis_entries_are_read(tmp_path: Path) -> None:
    draw(tmp_path, "x1.png")
    entries(tmp_path, dict(image_path=str(tmp_path / "x1.png"), caption="a cat"), name="Metadata.JSONL")
    assert captions(tmp_path) == {"x1.png": "a cat"} and not read(tmp_path).problems


def test_entries_that_match_no_picture_are_said_with_count_and_first(tmp_path: Path) -> None:
    draw(tmp_path / "train", "x1.png", "b/x2.png", "c/x2.png")
    names = ["test/x1.png", "x1.png", "gone.png", "x2.png"]
    entries(tmp_path / "train", *(dict(file_name=name, text=name) for name in names))
    assert captions(tmp_path / "train") == {"x1.png": "x1.png", "b/x2.png": "", "c/x2.png": ""}
    (problem,) = read(tmp_path / "train").problems
    assert problem.startswith("metadata.jsonl: 3 of 4 entries name no picture here, the first 'test/x1.png'")


def test_entries_in_a_folder_without_pictures_are_said(tmp_path: Path) -> None:
    draw(tmp_path, "images/x1.png")
    entries(tmp_path / "texts", dict(file_name="x1.png", text="a cat"))
    assert "1 of 1 entries name no picture" in read(tmp_path).problems[0]


def test_an_entry_of_the_exact_path_goes_first(tmp_path: Path) -> None:
    draw(tmp_path / "train", "a.png", "A.png")
    rows = [("train/a.png", "other"), ("a.png", "small"), ("A.png", "large")]
    entries(tmp_path / "train", *(dict(file_name=name, text=text) for name, text in rows))
    assert captions(tmp_path / "train") == {"a.png": "small", "A.png": "large"}
    assert "1 of 3 entries" in read(tmp_path / "train").problems[0]


def test_two_captions_for_one_picture_are_said(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    entries(tmp_path, *(dict(file_name="a.png", text=text) for text in ("first", "second", "second")))
    assert captions(tmp_path) == {"a.png": "second"}
    assert "several captions for 'a.png': the last one is used" in read(tmp_path).problems[0]


# ---------------------------------------------------------------- writing


def test_a_caption_is_written_beside_its_picture(tmp_path: Path) -> None:
    assert write_sidecar(tmp_path / "a.png", "a café", overwrite=False)
    assert (tmp_path / "a.txt").read_text("utf-8") == "a café\n"


@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_a_persons_text_is_never_written_over(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a{ending}").write_text("mine")
    assert not write_sidecar(tmp_path / "a.png", "theirs", overwrite=False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(f"a{ending}", "mine")]


@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_text_is_written_over_where_that_is_asked(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a{ending}").write_text("mine")
    assert write_sidecar(tmp_path / "a.png", "theirs", overwrite=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(f"a{ending}", "theirs\n")]


@pytest.mark.parametrize("blank", ["", "\n", "  \n"])
def test_a_blank_file_holds_nobodys_text(tmp_path: Path, blank: str) -> None:
    (tmp_path / "a.txt").write_text(blank)
    assert write_sidecar(tmp_path / "a.png", "new", overwrite=False)
    assert (tmp_path / "a.txt").read_text() == "new\n"


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("of someone else")
    (tmp_path / "a.txt").symlink_to(tmp_path / "other")
    (tmp_path / ".a.txt.writing").symlink_to(tmp_path / "other")
    assert write_sidecar(tmp_path / "a.png", "new", overwrite=True)
    assert (tmp_path / "a.txt").read_text() == "new\n" and (tmp_path / "other").read_text() == "of someone else"


def test_pictures_of_one_name_get_a_file_each(tmp_path: Path) -> None:
    draw(tmp_path, "a.jpg", "a.png", "b.png")
    (tmp_path / "a.txt").write_text("of both")
    for name in ("a.jpg", "a.png", "b.png"):
        assert write_sidecar(tmp_path / name, f"of {name}", overwrite=True)
    assert captions(tmp_path) == {name: f"of {name}" for name in ("a.jpg", "a.png", "b.png")}
    assert {path.name for path in tmp_path.glob("b.*")} == {"b.png", "b.txt"}


def test_a_caption_file_keeps_its_name(tmp_path: Path) -> None:
    draw(tmp_path, "a.png")
    (tmp_path / "a.TXT").write_text("old")
    assert write_sidecar(tmp_path / "a.png", "new", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.TXT"} and captions(tmp_path) == {"a.png": "new"}
