"""Paths that are too long, told before they are written."""

import os
from pathlib import Path

import pytest
from lora_kiln.training.basics.files import atomic_write
from lora_kiln.training.basics.long_paths import UNFINISHED, TooLong, try_length

from disk import ShortPaths

DEEP = f"{'a' * 90}/{'b' * 90}"


def takes(path: Path) -> bool:
    try:
        try_length(path)
    except TooLong:
        return False
    return True


@pytest.mark.parametrize("name", ["short.txt", f"{'c' * 60}.safetensors"])
def test_what_is_taken_can_be_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / DEEP / name
    taken = set()
    for longest in range(len(str(path)) - 40, len(str(path)) + 40, 3):
        with ShortPaths(tmp_path, longest):
            taken.add(takes(path))
            assert list(tmp_path.iterdir()) == []
            if takes(path):
                path.parent.mkdir(parents=True)
                with atomic_write(path) as unfinished:
                    unfinished.write_text("whole")
        if path.exists():
            assert path.read_text() == "whole"
            path.unlink()
            path.parent.rmdir()
            path.parent.parent.rmdir()
    assert taken == {True, False}


@pytest.mark.parametrize("name", ["short.txt", f"{'c' * 60}.safetensors"])
def test_what_just_fits_is_taken(tmp_path: Path, name: str) -> None:
    path = tmp_path / DEEP / name
    longest = max(len(str(path)), len(str(path.with_name(UNFINISHED))))
    with ShortPaths(tmp_path, longest):
        assert takes(path)
    with ShortPaths(tmp_path, longest - 1):
        assert not takes(path)


def test_the_refusal_says_length_limit_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / DEEP / f"{'c' * 90}.txt"
    with ShortPaths(tmp_path), pytest.raises(TooLong) as caught:
        try_length(path)
    for words in (f"has {len(str(path))} characters", "takes 259", "shorter name", "LongPathsEnabled"):
        assert words in str(caught.value)


def test_a_name_that_this_disk_does_not_take_is_refused(tmp_path: Path) -> None:
    name = "猫" * 90
    with pytest.raises(TooLong, match=f"270 of them in {name}, and this disk takes .* {255} of one name"):
        try_length(tmp_path / name / "a.txt")
    assert takes(tmp_path / ("猫" * 80) / "a.txt") and list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay(tmp_path: Path) -> None:
    path = tmp_path / DEEP / f"{'c' * 60}.txt"
    path.parent.mkdir(parents=True)
    path.write_text("ours")
    assert takes(path) and os.listdir(path.parent) == [path.name] and path.read_text() == "ours"
