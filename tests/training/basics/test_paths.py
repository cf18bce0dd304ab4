"""Names that strangers give."""

import os
from pathlib import Path

import pytest
from lora_kiln.training.basics.paths import (
    OutsideRefused,
    PathRefused,
    check_parts,
    leads_out,
    resolve,
    safe_part,
    visible_parts,
)


@pytest.mark.parametrize(
    "name",
    [
        "anna",
        "people/anna",
        "10_cat",
        "2024.01.02 at home",
        "猫/ネコ",
        "ｶﾒﾗ",
        "Ａ",
        "Zoë",
        "a..b",
        ".hidden",
        "COMA",
        "conx",
        "👩‍👧",
        "می‌خواهم",
        "console.log",
        "x" * 200,
    ],
)
def test_an_honest_name_is_taken(name: str) -> None:
    assert check_parts(name) == tuple(name.split("/"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a/../b", "'..'"),
        ("./a", "'.'"),
        ("a//b", "''"),
        ("", "''"),
        ("/a", "''"),
        ("a/", "''"),
        ("a\0", "not seen"),
        ("a\nb", "not seen"),
        ("\u202egpj.exe", "not seen"),
        ("a\u200bb", "not seen"),
        ("\ufeffa", "not seen"),
        ("a\ud800", "not seen"),
        ("a\\b", "disguise"),
        ("C:a", "disguise"),
        ("a*", "disguise"),
        ("a／b", "disguise"),
        ("a＼b", "disguise"),
        ("a∕b", "disguise"),
        ("a⁄b", "disguise"),
        ("Ｃ：x", "disguise"),
        ("a﹨b", "disguise"),
        ("．．", "dot"),
        ("‥", "dot"),
        ("…", "dot"),
        ("a.", "dot"),
        ("a ", "space"),
        (" a", "space"),
        ("a\u3000", "space"),
        ("CON", "device"),
        ("nul.txt", "device"),
        ("a/COM1", "device"),
        ("ＣＯＮ", "device"),
        ("LPT¹", "device"),
        ("CON .txt", "device"),
        ("conin$", "device"),
        ("x" * 201, "200 bytes"),
        ("猫" * 67, "200 bytes"),
        ("abc/" * 300 + "a", "1000 bytes"),
        (None, "no text"),
        (7, "no text"),
        (["a"], "no text"),
        (b"a", "no text"),
    ],
)
def test_a_trick_is_refused_with_the_reason(name: object, why: str) -> None:
    with pytest.raises(PathRefused, match=why):
        check_parts(name)


@pytest.fixture
def roots(tmp_path: Path) -> list[Path]:
    for name in ("first/sub", "second/sub", "third"):
        (tmp_path / name).mkdir(parents=True)
    return [tmp_path / "first", tmp_path / "second"]


def test_a_relative_name_lies_below_the_first_root(roots: list[Path]) -> None:
    assert resolve("sub", roots) == roots[0] / "sub"


def test_an_absolute_path_may_lie_in_any_root_or_be_one(roots: list[Path]) -> None:
    assert resolve(str(roots[1] / "sub"), roots) == roots[1] / "sub"
    assert resolve(str(roots[1]), roots) == roots[1]


def test_what_is_not_there_yet_has_a_path(roots: list[Path]) -> None:
    assert resolve("new/file.txt", roots) == roots[0] / "new" / "file.txt"


@pytest.mark.parametrize(
    "name", ["..", "../third", "sub/../../third", "/", "//first", "{}/third", "{}/first/../third", "{}/first-too"]
)
def test_a_path_outside_is_refused(roots: list[Path], name: str) -> None:
    with pytest.raises(OutsideRefused, match="lies outside"):
        resolve(name.format(roots[0].parent), roots)


@pytest.mark.parametrize("name", ["sub/../sub", "{}/second/../first/sub", "{}/second/sub/CON", "{}/second/sub/a\\b"])
def test_a_path_inside_is_held_to_the_same_rule(roots: list[Path], name: str) -> None:
    with pytest.raises(PathRefused):
        resolve(name.format(roots[0].parent), roots)


def test_a_link_counts_by_where_it_leads(roots: list[Path]) -> None:
    (roots[0] / "out").symlink_to(roots[0].parent / "third")
    (roots[0] / "across").symlink_to(roots[1])
    assert resolve("across/sub", roots) == roots[0] / "across" / "sub"
    for name in ("out", "out/new.txt", str(roots[0] / "out")):
        with pytest.raises(OutsideRefused, match="a link to .*third"):
            resolve(name, roots)
    assert leads_out(roots[0] / "out" / "x", roots) and not leads_out(roots[0] / "x", roots)


def test_a_root_may_be_a_link_itself(roots: list[Path]) -> None:
    linked = roots[0].parent / "linked"
    os.symlink(roots[0], linked)
    assert resolve("sub", [linked]) == linked / "sub"


@pytest.mark.parametrize("name", ["a", "people/anna", 'odd "name" <1>', "x. ", "CON"])
def test_files_of_any_allowed_name_are_visible(name: str) -> None:
    assert visible_parts(name) == tuple(name.split("/"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "a/", "a//b", ".hidden", "a/.git/b", "a\0"])
def test_hidden_files_and_other_folders_are_not(name: str) -> None:
    assert visible_parts(name) is None


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a:b", "a_b"),
        ("a/b\\c", "a_b_c"),
        ("COM¹", "_COM¹"),
        ("nul.txt", "_nul.txt"),
        ("👩‍👧", "👩‍👧"),
        ("a. .", "a"),
        (" ", ""),
    ],
)
def test_a_name_is_made_safe(text: str, safe: str) -> None:
    assert safe_part(text) == safe
    assert not safe or check_parts(safe) == (safe,)


def test_a_long_name_is_cut_between_characters() -> None:
    assert safe_part("猫" * 80, 100) == "猫" * 33
