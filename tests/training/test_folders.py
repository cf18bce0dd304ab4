"""Walking folders."""

from pathlib import Path

import pytest
from lora_kiln.training.folders import files_below


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


def test_a_link_to_a_folder_is_followed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "z.txt").write_text("z")
    (tree / "link").symlink_to(other)
    assert "link/z.txt" in names(tree)


def test_a_link_in_a_circle_ends(tree: Path) -> None:
    (tree / "sub" / "up").symlink_to(tree)
    assert len(names(tree)) == 4


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert names(tmp_path / "nowhere") == []
