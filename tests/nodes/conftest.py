"""Fixtures of the node tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def pictures(folders: Path) -> Path:
    """An empty folder `set` in the host's input folder."""
    folder = folders / "input" / "set"
    folder.mkdir()
    return folder
