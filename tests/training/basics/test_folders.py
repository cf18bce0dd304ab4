"""Walking folders."""

import os
import time
from pathlib import Path

import pytest
from lora_kiln.training.basics.folders import STABLE_AFTER, files_below, folders_with, is_stable


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/deep/d.txt", ".hidden/e.txt", ".f.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(root: Path, deepest: int | None = None) -> list[str]:
    return [path.relative_to(root).as_posix() for path in files_below(root, deepest)]


def test_files_come_in_name_order_without_hidden_ones(tree: Path) -> None:
    assert names(tree) == ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]


@pytest.mark.parametrize(("deepest", "count"), [(0, 2), (1, 3), (2, 4)])
def test_it_goes_as_deep_as_asked(tree: Path, deepest: int, count: int) -> None:
    assert len(names(tree, deepest)) == count


def test_links_are_followed_where_they_may_lead(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "z.txt").write_text("z")
    (tree / "folder").symlink_to(other)
    (tree / "file.txt").symlink_to(other / "z.txt")
    (tree / "inside.txt").symlink_to(tree / "a.txt")
    left_out: list[Path] = []
    found = [path.relative_to(tree).as_posix() for path in files_below(tree, left_out=left_out)]
    assert found == ["a.txt", "b.txt", "inside.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert left_out == [tree / "folder", tree / "file.txt"]
    allowed = [path.relative_to(tree).as_posix() for path in files_below(tree, within=(tree, other))]
    assert {"folder/z.txt", "file.txt"} < set(allowed)


def test_a_link_in_a_circle_ends(tree: Path) -> None:
    (tree / "sub" / "up").symlink_to(tree)
    assert len(names(tree)) == 4


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert names(tmp_path / "nowhere") == []


# ---------------------------------------------------------------- folders that hold files of a kind


def holding(root: Path, deepest: int = 3) -> list[str]:
    return [path.relative_to(root).as_posix() for path in folders_with(root, (".png", ".jpg"), deepest)]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Pictures at several depths; every folder changed long ago."""
    for name in ("a/1.png", "a/b/c/2.JPG", "a/b/c/d/3.png", "texts/x.txt", ".hidden/4.png", "odd.png/x.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    settle(tmp_path)
    return tmp_path


def settle(root: Path) -> None:
    long_ago = time.time() - 100
    for folder, _, _ in os.walk(root):
        os.utime(folder, (long_ago, long_ago))


def test_a_folder_counts_with_what_lies_below_it(album: Path) -> None:
    assert holding(album) == [".", "a", "a/b", "a/b/c"]


@pytest.mark.parametrize(("deepest", "count"), [(0, 0), (1, 2), (3, 4), (4, 5)])
def test_folders_are_looked_for_as_deep_as_asked(album: Path, deepest: int, count: int) -> None:
    assert len(holding(album, deepest)) == count


def test_a_new_picture_is_seen_at_once(album: Path) -> None:
    holding(album)
    (album / "texts" / "new.png").write_text("new")
    assert "texts" in holding(album)


def test_a_removed_picture_is_seen_at_once(album: Path) -> None:
    holding(album)
    (album / "a" / "1.png").unlink()
    (album / "a" / "b" / "c" / "2.JPG").unlink()
    assert holding(album) == []


def test_a_folder_that_did_not_change_is_not_listed_again(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, listed, scandir = holding(album), [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    assert holding(album) == first and listed == []
    (album / "texts" / "new.png").write_text("new")
    holding(album)
    assert listed == [album / "texts"]


def test_a_folder_of_a_disk_with_coarse_times_is_listed_again(album: Path) -> None:
    """exFAT leaves a folder's time as it is when files come into it."""
    then = (1e9, 1e9)
    os.utime(album / "texts", then)
    assert "texts" not in holding(album)
    (album / "texts" / "new.png").write_text("new")
    os.utime(album / "texts", then)
    assert "texts" in holding(album)


def test_a_link_that_leads_out_is_not_offered(album: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "z.png").write_text("z")
    (album / "link").symlink_to(other)
    assert "link" not in holding(album)
    assert album / "link" in folders_with(album, (".png",), 3, (album, other))


def test_folders_in_a_circle_end(album: Path) -> None:
    (album / "a" / "up").symlink_to(album)
    assert holding(album) == [".", "a", "a/b", "a/b/c"]


@pytest.mark.parametrize(
    ("age", "stable"),
    [
        (0.0, False),
        (STABLE_AFTER / 2, False),
        (STABLE_AFTER + 1, True),
        (-100.0, True),
        (-STABLE_AFTER / 2, False),  # FAT's, which are rounded up
    ],
)
def test_a_recent_change_may_hide_another(age: float, stable: bool) -> None:
    assert is_stable(int((time.time() - age) * 1e9)) is stable
