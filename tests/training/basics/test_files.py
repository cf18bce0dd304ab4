"""Atomic writes."""

from pathlib import Path

import pytest
from lora_kiln.training.basics.files import atomic_write


def test_a_new_file_replaces_the_old_one_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with atomic_write(tmp_path / "a") as unfinished:
        unfinished.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "new")]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a") as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_links_are_replaced_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("theirs")
    for name in ("a", ".a.writing"):
        (tmp_path / name).symlink_to(tmp_path / "other")
    with atomic_write(tmp_path / "a") as unfinished:
        unfinished.write_text("ours")
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "a").read_text() == "ours"
    assert (tmp_path / "other").read_text() == "theirs"
