"""Errors of the disk in words, by their code."""

from __future__ import annotations

import errno
import os

import pytest
from lora_kiln.training.basics import disk_errors
from lora_kiln.training.basics.disk_errors import is_held, remedy, told_by_library
from safetensors import SafetensorError


def error(code: int | None, winerror: int | None = None) -> OSError:
    made = OSError(code, os.strerror(code)) if code is not None else OSError("no code")
    if winerror is not None:
        made.winerror = winerror  # type: ignore[attr-defined]
    return made


KINDS = {
    "free some space on the disk of here": [
        error(errno.ENOSPC),
        error(errno.EDQUOT),
        error(errno.EFBIG),
        error(errno.ENOSPC, 112),
        error(errno.EACCES, 39),
    ],
    "another program, such as an antivirus or OneDrive, holds it": [
        error(errno.EACCES, 5),
        error(errno.EACCES, 32),
        error(errno.EACCES, 33),
        *(error(errno.EINVAL, winerror) for winerror in (145, 303, 391, 1224)),
        error(errno.EBUSY),
    ],
    "the path is too long": [error(errno.ENAMETOOLONG), error(errno.ENOENT, 206)],
    "make here writable: its disk may only be read": [error(errno.EROFS), error(errno.EACCES, 19)],
    "make here writable: set its rights": [error(errno.EACCES), error(errno.EPERM)],
    "make here writable, or look whether": [error(errno.EIO), error(None), error(errno.ENOENT, 3)],
}


@pytest.mark.parametrize(("words", "of"), [(words, each) for words, errors in KINDS.items() for each in errors])
def test_each_error_has_its_remedy_and_only_a_full_disk_is_to_be_emptied(words: str, of: OSError):
    told = remedy(of, "here")
    assert told.startswith(words) and ("free some space" in told) == words.startswith("free")
    assert is_held(of) == words.startswith("another program")


def test_what_open_tells_on_windows_is_that_the_file_is_held(monkeypatch: pytest.MonkeyPatch):
    """Python's `open` knows no code there but C's, which has one for rights and for files in use."""
    monkeypatch.setattr(disk_errors, "IS_WINDOWS", True)
    assert is_held(error(errno.EACCES)) and not is_held(error(errno.ENOSPC))


@pytest.mark.parametrize(("is_windows", "code"), [(False, errno.ENOSPC), (True, 112)])
def test_the_code_in_a_librarys_words_is_found(is_windows: bool, code: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk_errors, "IS_WINDOWS", is_windows)
    told = told_by_library(SafetensorError(f"Error while serializing: I/O error: no room (os error {code})"))
    assert "free some space" in remedy(told, "here") and "no room" in str(told)
    assert "look whether" in remedy(told_by_library(SafetensorError("HeaderTooSmall")), "here")
