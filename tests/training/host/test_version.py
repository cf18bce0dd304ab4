"""A ComfyUI that is too old is refused in one sentence; the oldest that is not is the same everywhere it is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lora_kiln.training.host.version import OLDEST, numbers, refuse_if_too_old

from host import PACK


@pytest.mark.parametrize("version", ["0.3.75", "0.9", "0.16.3", "0.18.1"])
def test_an_older_host_is_refused_with_what_to_do(version: str):
    with pytest.raises(ImportError, match=rf"needs ComfyUI {OLDEST} or later, .* {version}\. Update ComfyUI"):
        refuse_if_too_old(version)


@pytest.mark.parametrize("version", [OLDEST, f"{OLDEST}-rc1", "0.30.0", "0.100", "1.0.0", "v2", "nightly"])
def test_others_are_not(version: str):
    refuse_if_too_old(version)


def test_a_host_without_the_nodes_api_hears_the_same(tmp_path: Path):
    """Nothing else is asked of it before."""
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.20"')
    (tmp_path / "lora_kiln").symlink_to(PACK)
    code = "import asyncio, lora_kiln; asyncio.run(lora_kiln.comfy_entrypoint())"
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert told.stderr.strip().splitlines()[-1].startswith(f"ImportError: LoRA Kiln needs ComfyUI {OLDEST} or later")


def test_what_is_compared_are_numbers():
    assert numbers("0.9.10") < numbers("0.10.9")


def test_all_places_name_the_same_oldest_host():
    assert f'requires-comfyui = ">={OLDEST}"' in (PACK / "pyproject.toml").read_text("utf-8")
    assert f"You need ComfyUI {OLDEST} or later" in (PACK / "README.md").read_text("utf-8")
    assert f"--host {OLDEST}" in (PACK / ".ci" / "run").read_text("utf-8")
