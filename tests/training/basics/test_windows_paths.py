"""Names as Windows takes them: none leads out of its folder, and none is another's without being told.

Windows' rules are written down here once more, independently: drives, shares, streams, devices, endings, case.
"""

import ntpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lora_kiln.training.basics import paths
from lora_kiln.training.basics.paths import PathRefused, check_parts, folded, resolve, safe_part, visible_parts
from lora_kiln.training.data.uploads import _Places
from lora_kiln.training.host import Upload

ROOTS = [PureWindowsPath("C:/ComfyUI/input"), PureWindowsPath("D:/data")]
DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"
}
PIECES = [
    *("a", "A", "b", "é", "e\u0301", "É", "\u0131", "i", "I", "ſ", "s", "ß", "\u212a", "k", "ａ", "猫", "~1"),
    *("/", "/", "\\", ".", "..", " ", ":", "::$DATA", "／", "＼", "∕", "：", "…", "\u3000", "\u202e", "\0"),
    *(
        "C:",
        "D:",
        "CON",
        "nul",
        "COM¹",
        "ｃｏｎ",
        ".txt",
        ".png",
        "conin$",
        "\\\\server\\share\\",
        "\\\\?\\",
        "\\\\.\\",
    ),
    *("C:\\ComfyUI\\input\\", "c:/comfyui/INPUT/", "D:\\data\\", "C:\\ComfyUI\\input2\\", "\\ComfyUI\\input\\"),
]
names = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
often = settings(derandomize=True, max_examples=150, deadline=None, database=None)


def upper(text: str) -> str:
    """As NTFS and exFAT compare names: character by character."""
    return "".join(each.upper() if len(each.upper()) == 1 else each for each in text)


def opened(path: PureWindowsPath) -> tuple[str, ...]:
    """What Windows opens."""
    found = [upper(path.anchor)]
    for part in path.relative_to(path.anchor).parts:
        name = part.partition(":")[0].rstrip(" .")
        if upper(name.partition(".")[0].rstrip()) in DEVICES:
            return ("device",)
        found.append(upper(name))
    return tuple(found)


def is_plain(path: PureWindowsPath) -> bool:
    """Whether Windows opens a path by all its characters, below a root."""
    inside = [root for root in ROOTS if opened(path)[: len(root.parts)] == opened(root)]
    return bool(inside) and opened(path) == (upper(path.anchor), *map(upper, path.parts[1:]))


def full(path: str) -> str:
    """GetFullPathName."""
    return ntpath.normpath(path).rstrip(" .")


@pytest.fixture(scope="module", autouse=True)
def on_windows() -> Iterator[None]:
    system = SimpleNamespace(name="nt", path=SimpleNamespace(**{**vars(ntpath), "abspath": full, "realpath": full}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "os", system)
        patch.setattr(paths, "Path", PureWindowsPath)
        patch.setattr(paths, "PurePath", PureWindowsPath)
        yield


@often
@given(names)
@example("C:\\ComfyUI\\input\\a:stream")
@example("c:/comfyui/INPUT/sub/a.png")
@example("C:sub")
@example("..\\input2\\a")
def test_no_name_leads_out(name: str) -> None:
    try:
        path = resolve(name, ROOTS)  # type: ignore[arg-type]
    except PathRefused:
        return
    assert is_plain(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.png", "people/anna", "C:\\ComfyUI\\input\\sub", "d:/DATA/a", "C:/ComfyUI/input"])
def test_an_honest_name_is_taken(name: str) -> None:
    assert is_plain(resolve(name, ROOTS))  # type: ignore[arg-type]


@often
@given(names)
@example("NUL")
@example("a.png ")
@example("a.png.")
@example("a.png::$DATA")
def test_no_name_of_a_file_that_is_there_leads_out(name: str) -> None:
    parts = visible_parts(name)
    assert parts is None or is_plain(ROOTS[0].joinpath(*parts))


VARIANTS = [
    *(str.upper, str.lower, str.title, str.swapcase, lambda name: f"{name}.", lambda name: f"{name} "),
    *(lambda name, form=form: unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC")),
    *(lambda name: f"{name}::$DATA", lambda name: name.replace("/", "\\"), lambda name: name.replace("i", "\u0131")),
]


@often
@given(names, st.sampled_from(VARIANTS))
@example("ai", VARIANTS[-1])
def test_names_that_windows_takes_for_one_are_known_as_one(name: str, vary) -> None:
    try:
        one, other = (ROOTS[0].joinpath(*check_parts(each)) for each in (name, vary(name)))
    except PathRefused:
        return
    assert opened(one) != opened(other) or folded(name) == folded(vary(name))


def test_no_two_characters_that_differ_in_case_alone_are_two() -> None:
    others = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]
    assert [each for each in others if len({folded(each), folded(each.upper()), folded(each.lower())}) > 1] == []


@often
@given(names)
def test_a_name_that_was_made_safe_is_plain(text: str) -> None:
    name = safe_part(text)
    assert not name or is_plain(ROOTS[0] / name)


@often
@given(st.lists(names.map(lambda name: f"{name}.png") | names.map(lambda name: f"{name}.TXT"), max_size=6))
@example(["a.png", "A.PNG", "a.txt", "A.TXT"])
@example(["i.png", "\u0131.png", "\u0131.txt"])
def test_files_of_an_upload_never_meet(sent: list[str]) -> None:
    places, refused = _Places(), []
    for name in sorted(sent, key=lambda each: each.endswith(".TXT")):
        refused += [name] if places.add(Upload(name, Path("file"), True)) else []
    made = [ROOTS[0].joinpath(*path.parts) for path in places.files]
    assert all(map(is_plain, made)) and len({opened(path) for path in made}) == len(made)
    assert len(made) + len(refused) == len(sent)
