"""Captions: trigger words, tag order, and the files they lie in."""

from pathlib import Path

import pytest
from lora_kiln.training.data.captions import (
    CaptionFileError,
    drop_tags,
    one_line,
    read_metadata,
    read_text,
    shuffle_tags,
    with_trigger,
)

TAGS = "zwx, red, round, small, on grass, at night"
ORDERS = 40


@pytest.mark.parametrize(
    ("caption", "trigger", "expected"),
    [
        ("a cat", "zwx", "zwx, a cat"),
        ("", "zwx", "zwx"),
        ("a cat", "", "a cat"),
        ("a photo of zwx", "zwx", "a photo of zwx"),
        ("a photo of ZWX.", "zwx", "a photo of ZWX."),
        ("a zwxy cat", "zwx", "zwx, a zwxy cat"),
        ("a cat", "c.t", "c.t, a cat"),
        ("a photo of <zwx>", "<zwx>", "a photo of <zwx>"),
        ("zwx man, smiling", "zwx man", "zwx man, smiling"),
    ],
)
def test_trigger_word(caption: str, trigger: str, expected: str) -> None:
    assert with_trigger(caption, trigger) == expected


def test_trigger_word_is_put_in_once() -> None:
    assert with_trigger(with_trigger("a cat", "zwx"), "zwx") == "zwx, a cat"


@pytest.mark.parametrize("trigger", [" ", "\t\n"])
def test_a_blank_trigger_word_changes_nothing(trigger: str) -> None:
    assert with_trigger("a cat", trigger) == "a cat"


@pytest.mark.parametrize("keep", [0, 1, 3, 6, 99])
def test_shuffling_keeps_the_tags(keep: int) -> None:
    assert sorted(shuffle_tags(TAGS, keep, 1).split(", ")) == sorted(TAGS.split(", "))


@pytest.mark.parametrize("keep", [1, 3])
def test_tags_at_the_front_stay(keep: int) -> None:
    orders = [shuffle_tags(TAGS, keep, key).split(", ")[:keep] for key in range(ORDERS)]
    assert all(order == TAGS.split(", ")[:keep] for order in orders)


def test_the_key_decides_the_order() -> None:
    assert shuffle_tags(TAGS, 0, 1, "tags") == shuffle_tags(TAGS, 0, 1, "tags")
    assert len({shuffle_tags(TAGS, 0, key) for key in range(ORDERS)}) > ORDERS // 2


def test_every_loose_tag_comes_to_every_place() -> None:
    places = {(place, tag) for key in range(200) for place, tag in enumerate(shuffle_tags(TAGS, 1, key).split(", "))}
    assert len(places) == 1 + 5 * 5


@pytest.mark.parametrize("caption", ["", " , ,", "one"])
def test_few_tags_can_be_shuffled(caption: str) -> None:
    assert shuffle_tags(caption, 1, 0) == caption.strip(" ,")


@pytest.mark.parametrize("data", [b"caf\xe9", b"\xff\xfea", b"\x80"])
def test_another_encoding_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(CaptionFileError, match="a.txt is not UTF-8"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_metadata_may_call_the_caption(tmp_path: Path, key: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "{key}": " a cat "}}\n\n')
    assert read_metadata(tmp_path) == ({"a.png": "a cat"}, [])


def test_a_folder_without_metadata(tmp_path: Path) -> None:
    assert read_metadata(tmp_path) == ({}, [])


def test_metadata_in_json_lines_may_hold_any_separator_inside_a_text(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one\u2028two\x85three"}', "utf-8")
    captions, problems = read_metadata(tmp_path)
    assert not problems and captions["a.png"] == "one\u2028two\x85three"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_each_loose_tag_is_left_out_at_its_chance(share: float) -> None:
    tags = TAGS.split(", ")
    kept = [set(drop_tags(TAGS, 2, share, key).split(", ")) for key in range(1000)]
    for tag in tags[:2]:
        assert all(tag in each for each in kept)
    for tag in tags[2:]:
        assert sum(tag not in each for each in kept) / len(kept) == pytest.approx(share, abs=0.05)


def test_tags_that_stay_keep_their_order() -> None:
    order = {tag: place for place, tag in enumerate(TAGS.split(", "))}
    for key in range(ORDERS):
        places = [order[tag] for tag in drop_tags(TAGS, 1, 0.5, key).split(", ")]
        assert places == sorted(places) and places[0] == 0


def test_the_key_decides_which_tags_are_left_out() -> None:
    assert drop_tags(TAGS, 1, 0.5, 3) == drop_tags(TAGS, 1, 0.5, 3)
    assert len({drop_tags(TAGS, 1, 0.5, key) for key in range(ORDERS)}) > 8


@pytest.mark.parametrize(
    ("caption", "line"),
    [("a cat", "a cat"), ("a cat\non a mat", "a cat on a mat"), ("a\r\n\r\n b \u2028c", "a b c"), ("", ""), ("\n", "")],
)
def test_a_caption_of_several_lines_becomes_one(caption: str, line: str) -> None:
    assert one_line(caption) == line


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_caption_is_read_alike_in_every_encoding(tmp_path: Path, encoding: str, line_end: str) -> None:
    lines = ["first line, café", "", "second paragraph", ""]
    (tmp_path / "a.txt").write_bytes(line_end.join(lines).encode(encoding))
    assert read_text(tmp_path / "a.txt") == "first line, café\n\nsecond paragraph"


@pytest.mark.parametrize("data", [b"a\0cat", b"a cat\0\0\0", "一只\0狐狸, a".encode("utf-16-le")])
def test_null_characters_are_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(CaptionFileError, match="a.txt (holds null characters|is not UTF-8)"):
        read_text(tmp_path / "a.txt")


def test_metadata_texts_end_their_lines_with_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "one\\r\\ntwo"}\r\n')
    assert read_metadata(tmp_path) == ({"a.png": "one\ntwo"}, [])
