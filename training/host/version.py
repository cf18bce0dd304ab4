"""Refuses a ComfyUI that is too old; the package imports this module first, before anything that it may lack."""

import re

import comfyui_version

OLDEST = "0.18.2"
"""Oldest ComfyUI that the pack is tested with."""


def numbers(version: str) -> tuple[int, ...]:
    """The first three numbers in a version string."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def refuse_if_too_old(version: str) -> None:
    """Raises ImportError if the version is below OLDEST; the host logs it as one line beside the pack's name."""
    if () < numbers(version) < numbers(OLDEST):
        raise ImportError(
            f"LoRA Kiln needs ComfyUI {OLDEST} or later, and this is ComfyUI {version}. Update ComfyUI and restart it."
        )


refuse_if_too_old(comfyui_version.__version__)
