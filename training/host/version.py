"""Refuses a ComfyUI, PyTorch or Python that is too old: the package imports it before what those may lack."""

from __future__ import annotations

import platform
import re

import comfyui_version
import torch

OLDEST = "0.18.2"
"""Oldest ComfyUI that the pack is tested with."""
OLDEST_TORCH = "2.6"
"""Oldest PyTorch: before it attention takes no order of kernels; today's transformers asks for it too."""
OLDEST_PYTHON = "3.10"
"""Oldest Python, as of ComfyUI itself."""


def numbers(version: str) -> tuple[int, ...]:
    """The first three numbers in a version string."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def refuse_if_too_old(comfyui: str, torch: str = OLDEST_TORCH, python: str = OLDEST_PYTHON) -> None:
    """Raises ImportError if one of them is below its oldest; the host logs it as one line beside the pack's name."""
    found = {"ComfyUI": (comfyui, OLDEST), "PyTorch": (torch, OLDEST_TORCH), "Python": (python, OLDEST_PYTHON)}
    old = {name: (it, least) for name, (it, least) in found.items() if () < numbers(it) < numbers(least)}
    if old:
        needed = "; ".join(f"{name} {least} or later, and this is {name} {it}" for name, (it, least) in old.items())
        raise ImportError(f"LoRA Kiln needs {needed}. Update {' and '.join(old)}, then restart ComfyUI.")


refuse_if_too_old(comfyui_version.__version__, str(torch.__version__), platform.python_version())
