"""What the registry's package holds: `comfy node pack`'s own list."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from conftest import missing
from host import PACK

PACKING = "import sys; from comfy_cli.file_utils import zip_files; zip_files(sys.argv[1])"
ROOMS = {
    *("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE"),
    *("docs", "example_workflows", "locales", "nodes", "training", "web"),
}
"""All that may lie at the top; locales where the pack has them."""
NEEDED = ("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE", "docs/security.md")
ENDINGS = {".py", ".toml", ".txt", ".md", ".js", ".mjs", ".css", ".json", ".jpg", ".png", ""}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Path -> bytes of every file in the package, made of this clone."""
    python = os.environ.get("LORA_KILN_COMFY_CLI")
    if not python:
        missing("LORA_KILN_COMFY_CLI is not set: start with `python3 dev.py test`.")
    target = tmp_path_factory.mktemp("pack") / "node.zip"
    subprocess.run([str(python), "-c", PACKING, str(target)], cwd=PACK, check=True)
    with zipfile.ZipFile(target) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def test_it_holds_what_the_pack_needs(packed: dict[str, int]) -> None:
    rooms = ["nodes", "training", "web", "locales", "example_workflows"]
    tracked = subprocess.run(["git", "ls-files", "-z", *rooms], cwd=PACK, check=True, capture_output=True, text=True)
    assert {*NEEDED, *filter(None, tracked.stdout.split("\0"))} <= set(packed)


def test_it_holds_nothing_else(packed: dict[str, int]) -> None:
    assert {Path(path).parts[0] for path in packed} <= ROOMS
    assert [path for path in packed if path.startswith(("docs/bench/", "docs/images/"))] == []
    assert {Path(path).suffix for path in packed} <= ENDINGS
    assert [path for path in packed if any(part.startswith(".") for part in Path(path).parts)] == []


def test_it_is_small(packed: dict[str, int]) -> None:
    assert sum(packed.values()) < 5_000_000
