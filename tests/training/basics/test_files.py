"""Atomic writes."""

import errno
import os
import time
from pathlib import Path

import pytest
from lora_kiln.training.basics import files, locks
from lora_kiln.training.basics.files import (
    atomic_write,
    claim_name,
    scratch_folder,
    sweep_scratch_folders,
    sweep_unfinished,
    sync,
    unfinished_file,
)


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


# ---------------------------------------------------------------- what killed processes leave


def age(path: Path, seconds: float = 7200) -> Path:
    then = time.time() - seconds
    os.utime(path, (then, then), follow_symlinks=False)
    return path


def test_unfinished_files_that_nobody_writes_are_swept(tmp_path: Path) -> None:
    for name in (".a.safetensors.writing", ".b.writing", ".c.writing", "d.writing", ".e.txt"):
        (tmp_path / name).write_text("half")
    for name in (".a.safetensors.writing", ".b.writing", "d.writing", ".e.txt"):
        age(tmp_path / name)
    (tmp_path / ".step.writing").mkdir()
    age(tmp_path / ".step.writing")
    (tmp_path / "other").write_text("theirs")
    (tmp_path / ".link.writing").symlink_to(tmp_path / "other")
    age(tmp_path / ".link.writing")
    sweep_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".c.writing", "d.writing", ".e.txt", ".step.writing", "other"}
    sweep_unfinished(tmp_path / "missing")


def test_a_scratch_folder_goes_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path, ".x-") as folder:
        (folder / "0").write_text("half")
        assert folder.parent == tmp_path and folder.name.startswith(".x-")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_whose_lock_is_held_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    waits: list[float] = []
    with monkeypatch.context() as scanner:
        scanner.setattr(os, "open", refused)
        scanner.setattr(locks.time, "sleep", waits.append)
        with scratch_folder(tmp_path, ".x-") as folder:
            assert folder.is_dir()
    assert waits == []


def test_scratch_folders_of_dead_processes_are_swept(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "0").write_text("theirs")
    for name in (".x-dead", ".x-young", ".y-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0").write_text("half")
    for name in (".x-dead", ".y-dead"):
        age(tmp_path / name / "0")
        age(tmp_path / name)
    (tmp_path / ".x-link").symlink_to(tmp_path / "other")
    age(tmp_path / ".x-link")
    with scratch_folder(tmp_path, ".x-") as alive:
        for path in (*alive.iterdir(), alive):
            age(path)
        sweep_scratch_folders(tmp_path, ".x-")
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {alive.name, ".x-young", ".y-dead", ".x-link", "other"}
    assert (tmp_path / "other" / "0").exists()


def test_two_that_write_one_file_do_not_meet(tmp_path: Path) -> None:
    """Each has a file of its own until the end; the last to end stays, whole."""
    with atomic_write(tmp_path / "a") as first:
        first.write_text("first")
        with atomic_write(tmp_path / "a") as second:
            second.write_text("second, and longer")
        assert first.read_text() == "first"
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "first")]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_name_is_claimed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not has_links:  # as on exFAT
        monkeypatch.setattr(os, "link", refused)
    with unfinished_file(tmp_path) as one, unfinished_file(tmp_path) as other:
        one.write_text("one")
        other.write_text("other")
        claim_name(one, tmp_path / "a")
        with pytest.raises(FileExistsError):
            claim_name(other, tmp_path / "a")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "one")]


def test_a_broken_link_has_a_name_too(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "nowhere")
    with unfinished_file(tmp_path) as unfinished, pytest.raises(FileExistsError):
        unfinished.write_text("ours")
        claim_name(unfinished, tmp_path / "a")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("is_supported", [True, False])
def test_on_macos_a_file_goes_to_the_disk_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_supported: bool
) -> None:
    called = []

    def full_sync(handle: int, command: int) -> None:
        called.append(command)
        if not is_supported:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(files.fcntl, "fcntl", full_sync)
    monkeypatch.setattr(os, "fsync", lambda handle: called.append("fsync"))
    (tmp_path / "a").write_text("ours")
    sync(tmp_path / "a")
    assert called == ([51] if is_supported else [51, "fsync"])
