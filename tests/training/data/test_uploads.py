"""What a person drops on a node becomes a new folder, whatever the files are called and hold."""

import errno
import os
import re
import time
import unicodedata
from pathlib import Path

import pytest
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.training.basics.errors import InputError, Refusal
from lora_kiln.training.data.captions import SIDECARS
from lora_kiln.training.data.dataset_settings import DatasetSettings
from lora_kiln.training.data.picture_folder import read_folder
from lora_kiln.training.data.picture_kinds import ENDINGS
from lora_kiln.training.data.uploads import LONGEST_NAME, _Places, add, largest, safe_path
from lora_kiln.training.host import Upload
from PIL import Image

from windows_files import WindowsFiles


@pytest.fixture
def spool(folders: Path, tmp_path: Path):
    """Makes an upload of {name: color or text or bytes}."""

    def make(files: dict[str, object]) -> list[Upload]:
        uploads = []
        for number, (name, content) in enumerate(files.items()):
            path = tmp_path / str(number)
            if isinstance(content, str) and not name.lower().endswith((".txt", ".caption")):
                Image.new("RGB", (64, 48), content).save(path, "PNG")
            else:
                path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
            uploads.append(Upload(name, path, True))
        return uploads

    return make


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_pictures_and_captions_become_a_folder(folders: Path, spool) -> None:
    files = {"a.txt": "of a", "a.png": "red", "10_cat/b.JPG": "blue", "10_cat/b.caption": "of b"}
    answer = add({"name": "cats"}, spool(files))
    assert answer == {"folder": "cats", "pictures": 2, "captions": 2, "refused": []}
    assert tree(folders / "input" / "cats") == ["10_cat/b.caption", "10_cat/b.jpg", "a.png", "a.txt"]
    assert (folders / "input" / "cats" / "a.txt").read_text() == "of a"


def test_a_name_that_is_taken_gets_a_number(folders: Path, spool) -> None:
    names = [add({"name": "cats"}, spool({"a.png": "red"}))["folder"] for _ in range(3)]
    assert names == ["cats", "cats-2", "cats-3"]


def test_many_long_names_with_one_beginning_are_placed_in_no_time(spool) -> None:
    """The bound is generous: it took minutes where each name was tried from the first number on."""
    (one,) = spool({"a.png": "red"})
    places, start = _Places(), time.process_time()
    for number in range(3000):
        assert places.add(Upload(f"{'a long prompt ' * 12}{number}.png", one.path, True)) == ""
    assert len(places.files) == 3000 and time.process_time() - start < 10


def test_what_is_no_picture_is_left_out_with_a_reason(folders: Path, spool) -> None:
    files = {
        "a.png": "red", "b.png": b"no picture", "c.exe": b"MZ", "a.txt": "fine", "lone.txt": "no picture of its own",
        "a.caption": b"caf\xe9", "metadata.jsonl": b"{}", "page.html": b"<script>", "empty.png": b"",
    }  # fmt: skip
    answer = add({"name": "cats"}, spool(files))
    assert tree(folders / "input" / "cats") == ["a.png", "a.txt"]
    reasons = dict(line.split(": ", 1) for line in answer["refused"])
    assert reasons.keys() == files.keys() - {"a.png", "a.txt"}
    assert "not a picture" in reasons["b.png"] and "only pictures" in reasons["c.exe"]
    assert "UTF-8" in reasons["a.caption"] and "no picture of its name" in reasons["lone.txt"]


def test_a_program_for_a_printer_is_no_picture(folders: Path, spool) -> None:
    """Pillow would hand it to Ghostscript, whatever its ending says."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(x) print\n%%EOF\n"
    with pytest.raises(InputError, match="not a picture"):
        add({"name": "cats"}, spool({"a.png": postscript}))


def test_without_a_usable_picture_there_is_no_folder(folders: Path, spool) -> None:
    with pytest.raises(InputError, match="no usable picture"):
        add({"name": "cats"}, spool({"a.png": b"nothing", "a.txt": "text"}))
    assert list((folders / "input").iterdir()) == []


def test_a_file_that_was_cut_is_left_out(folders: Path, spool) -> None:
    whole, cut = spool({"a.png": "red", "b.png": "blue"})
    answer = add({"name": "cats"}, [whole, Upload(cut.name, cut.path, False)])
    assert "larger than" in answer["refused"][0] and tree(folders / "input" / "cats") == ["a.png"]


def test_names_that_differ_in_case_only_do_not_meet(folders: Path, spool) -> None:
    answer = add({"name": "cats"}, spool({"a.png": "red", "A.PNG": "blue"}))
    assert answer["pictures"] == 1 and "has its name" in answer["refused"][0]


def test_a_folder_whose_name_differs_in_case_alone_is_another(folders: Path, spool) -> None:
    names = [add({"name": name}, spool({"a.png": "red"}))["folder"] for name in ("Cats", "cats", "CATS")]
    assert names == ["Cats", "cats-2", "CATS-3"]


def test_what_the_disk_takes_for_another_file_is_left_out(folders: Path, spool, monkeypatch) -> None:
    """Windows has short names of its own for long ones, as in LONGNA~1.PNG."""
    exists = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: str(path).endswith("LONGNA~1.png") or exists(path))
    answer = add({"name": "cats"}, spool({"long name of it.png": "red", "LONGNA~1.png": "blue"}))
    assert answer["pictures"] == 1 and "LONGNA~1.png: the disk takes its name" in answer["refused"][0]
    assert tree(folders / "input" / "cats") == ["long name of it.png"]


def test_what_is_left_of_a_folder_that_cannot_be_filled_is_named(folders: Path, spool, monkeypatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "The process cannot access the file")

    for name in ("replace", "rmdir"):
        monkeypatch.setattr(os, name, refused)
    with pytest.raises(Refusal, match=f"delete {folders / 'input' / 'cats'}"):
        add({"name": "cats"}, spool({"a.png": "red"}))


HOSTILE = [
    *("../a.png", "x/../../a.png", "/etc/a.png", "//server/share/a.png", "..\\a.png", "\\\\server\\a.png", "a\0.png"),
    *(".a.png", ".git/a.png", "x//a.png", "./a.png", " .png", "1/2/3/4/5/a.png", "..", ""),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_elsewhere_is_refused(folders: Path, spool, name: str) -> None:
    assert safe_path(name) is None
    files = spool({"good.png": "red", "x.png": "blue"})
    answer = add({"name": "cats"}, [files[0], Upload(name, files[1].path, True)])
    assert answer["pictures"] == 1 and len(answer["refused"]) == 1
    assert tree(folders / "input") == ["cats/good.png"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b (1).PNG", "a b (1).png"),
        ("C:evil.png", "C_evil.png"),
        ('a<b>"c|d?.png', "a_b__c_d_.png"),
        ("CON.png", "_CON.png"),
        ("con.tar.png", "_con.tar.png"),
        ("lpt1/a.png", "_lpt1/a.png"),
        ("gnp\u202e.exe.png", "gnp_.exe.png"),
        ("zero\u200bwidth.png", "zero_width.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("\uff0e\uff0e\uff0fa.png", "\uff0e\uff0e_a.png"),
        ("half\ud800.png", "half_.png"),
        ("dots. . ./a.png", "dots/a.png"),
        ("bell\x07.png", "bell_.png"),
    ],
)
def test_a_name_that_a_file_system_minds_is_changed(name: str, expected: str) -> None:
    assert str(safe_path(name)) == expected


def test_a_long_name_is_cut_alike_for_picture_and_caption() -> None:
    stem = "猫" * 200
    picture, caption = safe_path(f"{stem}.png"), safe_path(f"{stem}.txt")
    assert picture is not None and caption is not None and picture.stem == caption.stem
    assert 0 < len(picture.stem.encode()) <= LONGEST_NAME


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
LONG = "long name " * 30


def contents(folder: Path) -> dict[object, str]:
    """Color of the first pixel -> caption, as Load Dataset reads a folder."""
    read = read_folder(folder, DatasetSettings())
    assert not read.problems
    return {Image.open(picture.path).convert("RGB").getpixel((0, 0)): picture.caption for picture in read.pictures}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a?", "a_"),
        ("a_", "a?"),
        ("a:b", "a|b"),
        (f"{LONG}1", f"{LONG}2"),
        ("x?/a", "x_/a"),
        ("a.", "a"),
        ("a\uff1f", "a?"),
        ("CON", "_CON"),
    ],
)
@pytest.mark.parametrize("captions_first", [True, False])
def test_a_caption_stays_with_its_picture(folders: Path, spool, first: str, second: str, captions_first: bool) -> None:
    pictures = {f"{first}.png": "red", f"{second}.png": "blue"}
    texts = {f"{second}.txt": "of the blue one", f"{first}.TXT": "of the red one"}
    files = texts | pictures if captions_first else pictures | texts
    answer = add({"name": "cats"}, spool(files))
    assert (answer["pictures"], answer["captions"], answer["refused"]) == (2, 2, [])
    assert contents(folders / "input" / "cats") == {(255, 0, 0): "of the red one", (0, 0, 255): "of the blue one"}


@pytest.mark.parametrize(("picture", "text"), [(NFC, NFD), (NFD, NFC), ("a", "A"), ("a", "a.png"), ("a?", "a?.PNG")])
def test_a_caption_finds_its_picture_in_another_form_of_its_name(folders: Path, spool, picture: str, text: str) -> None:
    add({"name": "cats"}, spool({f"{picture}.png": "red", f"{text}.txt": "of the red one"}))
    assert contents(folders / "input" / "cats") == {(255, 0, 0): "of the red one"}


@pytest.mark.parametrize(("taken", "refused"), [("a", "A"), (NFC, NFD), (NFD, NFC)])
def test_the_caption_of_a_refused_picture_goes_to_no_other_one(folders: Path, spool, taken: str, refused: str) -> None:
    files = {f"{taken}.png": "red", f"{refused}.png": "blue", f"{refused}.txt": "of the blue one"}
    answer = add({"name": "cats"}, spool(files))
    assert len(answer["refused"]) == 2 and contents(folders / "input" / "cats") == {(255, 0, 0): ""}
    bad = {"a?.png": b"nothing", "a_.png": "blue", "a?.txt": "of the first"}
    answer = add({"name": "dogs"}, spool(bad))
    assert len(answer["refused"]) == 2 and contents(folders / "input" / "dogs") == {(0, 0, 255): ""}


def test_pictures_of_one_name_keep_their_captions(folders: Path, spool) -> None:
    files = {"a?.jpg": "red", "a?.png": "blue", "a?.jpg.txt": "of the red one", "a?.txt": "of the blue one"}
    assert not add({"name": "cats"}, spool(files))["refused"]
    assert contents(folders / "input" / "cats") == {(255, 0, 0): "of the red one", (0, 0, 255): "of the blue one"}


@pytest.mark.parametrize(
    "names", [("a.png", "a.png/b.png"), ("A.png/b.png", "a.png"), ("b.png", "a.png", "a.txt/c.png", "a.txt")]
)
def test_a_folder_of_a_files_name_is_said(folders: Path, spool, names: tuple[str, ...]) -> None:
    answer = add({"name": "cats"}, spool({name: "red" for name in names}))
    assert len(answer["refused"]) == 1 and "a file and a folder" in answer["refused"][0]
    assert len(tree(folders / "input" / "cats")) == len(names) - 1


STRANGE = [
    *("cats！", "猫：犬", "what？", "a／b", "cats…", "cats。", "Mr. Smith.", "cats ．", "¨cats", "\u3000cats", "℀"),
    *("cats\u2024", "ＣＯＮ", "nul．txt", "COM¹", "CON" + "x." * 200, "CON." + "x" * 400, "a\u2044b", "￨￤"),
    *("＜cats＞", "cats\ufeff", "\u0345cats "),
]


@pytest.mark.parametrize("name", STRANGE)
def test_the_new_folder_can_be_loaded(folders: Path, spool, name: str) -> None:
    made = add({"name": name}, spool({"a.png": "red", f"{name.replace('/', '')}/b.png": "blue"}))
    assert made["pictures"] == 2
    for folder in {made["folder"], *(path.parent for path in map(Path, tree(folders / "input")))}:
        assert LoadDataset.validate_inputs(folder=[Path(folder).as_posix()]) is True


def test_what_systems_put_into_a_folder_is_not_taken(folders: Path, spool) -> None:
    answer = add({"name": "cats"}, spool({"a.png": "red", "@eaDir/a.png/SYNO.jpg": "blue", "__MACOSX/._a.png": "blue"}))
    assert tree(folders / "input" / "cats") == ["a.png"] and len(answer["refused"]) == 2


def test_a_folder_that_cannot_be_written_leaves_nothing(folders: Path, spool) -> None:
    uploads = spool({"a.png": "red", "b.png": "blue"})
    lost = Upload("c.png", uploads[1].path, True)  # moved away when its turn comes
    with pytest.raises(Refusal, match="cannot be written") as caught:
        add({"name": "cats"}, [*uploads, lost])
    assert caught.value.status == 507 and list((folders / "input").iterdir()) == []


def test_files_that_an_antivirus_looks_at_are_moved_all_the_same(
    folders: Path, spool, windows_files: WindowsFiles
) -> None:
    uploads = spool({"a.png": "red", "b/c.bmp": "blue"})
    for _ in uploads:
        windows_files.hold("*", times=1)
    assert add({"name": "cats"}, uploads)["pictures"] == 2


@pytest.mark.parametrize("name", ["", "   ", "...", ".hidden", "../cats"])
def test_a_folder_needs_a_name(folders: Path, spool, name: str) -> None:
    with pytest.raises(InputError, match="give the new folder a name"):
        add({"name": name}, spool({"a.png": "red"}))
    assert tree(folders / "input") == []


@pytest.mark.parametrize(
    ("name", "made"), [("a/b", "a_b"), ("/abs", "_abs"), ("C:\\cats", "C__cats"), ("NUL", "_NUL"), ("\0", "_")]
)
def test_a_folder_lies_in_the_input_folder(folders: Path, spool, name: str, made: str) -> None:
    assert add({"name": name}, spool({"a.png": "red"}))["folder"] == made
    assert tree(folders / "input") == [f"{made}/a.png"]


def test_only_pictures_and_captions_have_a_size() -> None:
    assert largest("a.PNG") > 10**7 and 0 < largest("a.txt") < 10**7
    assert [largest(name) for name in ("a.exe", "a", "a.png.html", "a.svg", "metadata.jsonl")] == [0] * 5


def test_the_page_offers_the_endings_that_are_taken() -> None:
    page = (Path(__file__).parents[3] / "web" / "upload.mjs").read_text(encoding="utf-8")
    assert set(re.findall(r'"(\.\w+)"', page)) == {*ENDINGS, *SIDECARS}
