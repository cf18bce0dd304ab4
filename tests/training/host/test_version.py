"""A ComfyUI, PyTorch or Python that is too old is refused in words; the oldest is the same everywhere it is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lora_kiln.training.host.version import OLDEST, OLDEST_PYTHON, OLDEST_TORCH, numbers, refuse_if_too_old

from host import PACK


@pytest.mark.parametrize("version", ["0.3.75", "0.9", "0.16.3", "0.18.1"])
def test_an_older_host_is_refused_with_what_to_do(version: str):
    with pytest.raises(ImportError, match=rf"needs ComfyUI {OLDEST} or later, .* {version}\. Update ComfyUI"):
        refuse_if_too_old(version)


@pytest.mark.parametrize("version", [OLDEST, f"{OLDEST}-rc1", "0.30.0", "0.100", "1.0.0", "v2", "nightly"])
def test_others_are_not(version: str):
    refuse_if_too_old(version)


@pytest.mark.parametrize("torch", ["1.13.1", "2.0.0+cu118", "2.5.1+cu124"])
def test_an_older_torch_is_refused_with_what_to_do(torch: str):
    with pytest.raises(ImportError) as refused:
        refuse_if_too_old("0.30.0", torch, "3.12.10")
    assert str(refused.value) == (
        f"LoRA Kiln needs PyTorch {OLDEST_TORCH} or later, and this is PyTorch {torch}. "
        "Update PyTorch, then restart ComfyUI."
    )


@pytest.mark.parametrize("torch", [OLDEST_TORCH, "2.6.0+cu124", "2.6.0a0+git1", "2.14.1+rocm7", "2.16.0.dev20261101"])
@pytest.mark.parametrize("python", [OLDEST_PYTHON, "3.10.0", "3.13.0rc1"])
def test_newer_ones_are_not(torch: str, python: str):
    refuse_if_too_old("0.30.0", torch, python)


def test_all_that_are_too_old_are_named_at_once():
    with pytest.raises(
        ImportError, match=r"ComfyUI 0\.9; PyTorch .* 2\.3\.1; Python .* 3\.9\.18\. Update ComfyUI and Py"
    ):
        refuse_if_too_old("0.9", "2.3.1", "3.9.18")


@pytest.mark.parametrize(
    ("comfyui", "torch", "needs"),
    [("0.3.20", "2.6.0", f"ComfyUI {OLDEST}"), ("0.30.0", "2.5.1+cu124", f"PyTorch {OLDEST_TORCH}")],
)
def test_a_host_that_lacks_what_the_pack_imports_hears_the_same(tmp_path: Path, comfyui: str, torch: str, needs: str):
    """Nothing else is asked of it before."""
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{comfyui}"')
    (tmp_path / "torch.py").write_text(f'__version__ = "{torch}"')
    (tmp_path / "lora_kiln").symlink_to(PACK)
    code = "import asyncio, lora_kiln; asyncio.run(lora_kiln.comfy_entrypoint())"
    told = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True)
    assert told.stderr.strip().splitlines()[-1].startswith(f"ImportError: LoRA Kiln needs {needs} or later")


def test_what_is_compared_are_numbers():
    assert numbers("0.9.10") < numbers("0.10.9")


def test_all_places_name_the_same_oldest_host():
    assert f'requires-comfyui = ">={OLDEST}"' in (PACK / "pyproject.toml").read_text("utf-8")
    assert f'requires-python = ">={OLDEST_PYTHON}"' in (PACK / "pyproject.toml").read_text("utf-8")
    assert f"You need ComfyUI {OLDEST} or later" in (PACK / "README.md").read_text("utf-8")
    assert f"--host {OLDEST}" in (PACK / ".ci" / "run").read_text("utf-8")
