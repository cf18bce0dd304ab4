"""What a person drops on a node becomes a new folder, whatever the files are called and hold."""

import re
from pathlib import Path

import pytest
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data.captions import SIDECARS
from lora_kiln.training.data.picture_kinds import ENDINGS
from lora_kiln.training.data.uploads import LONGEST_NAME, add, largest, safe_path
from lora_kiln.training.host import Upload
from PIL import Image


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
        ("\uff0e\uff0e\uff0fa.png", "\uff0e\uff0e\uff0fa.png"),
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
