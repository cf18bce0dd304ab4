"""Refuses a ComfyUI that is too old. The first import of this package: nothing is asked of such a host."""

import re

import comfyui_version

OLDEST = "0.18.2"
"""the oldest ComfyUI that the pack was tested with, and works in"""


def numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version; none where it has none."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def refuse_if_too_old(version: str) -> None:
    """Raises ImportError, which the host logs as one line beside the pack's name."""
    if () < numbers(version) < numbers(OLDEST):
        raise ImportError(
            f"LoRA Kiln needs ComfyUI {OLDEST} or later, and this is ComfyUI {version}. Update ComfyUI and restart it."
        )


refuse_if_too_old(comfyui_version.__version__)
