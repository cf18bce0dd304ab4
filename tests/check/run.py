"""Tries on a person's own ComfyUI what the pack needs of it, and prints a report that can be posted.

python dev.py check [--comfyui DIR] [arguments of ComfyUI's main.py]

It runs in the Python that runs ComfyUI, installs nothing, and changes nothing in that ComfyUI: a folder in the output
folder holds all that is written, and is removed at the end. The exit status is 0 when nothing failed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from check.ground import Removal, find_comfyui, ground
from check.outcome import FAILED, NOT_THERE, PASSED, Check, FailedError, result_of, results
from check.private import Privacy, privacy
from environment import say

CAN_BE_POSTED = "Known names and folders are taken out of these lines. Look them over before you post them."


def main(comfyui: str | None, arguments: Sequence[str], pack: Path) -> int:
    """Prints the report; the exit status.

    Args:
        comfyui: ComfyUI's folder; None: the pack lies in its custom_nodes.
        arguments: of ComfyUI's main.py.
        pack: this clone.
    """
    started = time.monotonic()
    folder = find_comfyui(comfyui, pack)
    say("trying what LoRA Kiln needs of this machine; with a GPU this may take some minutes")
    logging.getLogger().addHandler(logging.NullHandler())  # the host's and the pack's own log is not part of the report
    outcomes: Counter[str] = Counter()
    with ground(folder, arguments, pack) as (place, removal):
        from check.table import CHECKS

        private = privacy(comfyui=folder, output=place.output, pack=pack, folder=place.folder)
        for result in results(CHECKS, place):
            outcomes[result.outcome] += 1
            tell(result.line(), private)
    last = result_of(Check("end", "nothing of it stays", lambda _: nothing_left(removal)), place)
    outcomes[last.outcome] += 1
    tell(last.line(), private)
    counts = ", ".join(f"{outcomes[each]} {each}" for each in (PASSED, FAILED, NOT_THERE))
    tell(f"{counts}, in {time.monotonic() - started:.0f} s. {CAN_BE_POSTED}", private)
    return 1 if outcomes[FAILED] else 0


def tell(line: str, private: Privacy) -> None:
    """Prints a line of the report."""
    head, colon, text = line.partition(": ")
    line = f"{head}{colon}{private.without(text)}"
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def nothing_left(removal: Removal) -> str:
    if removal.left:
        raise FailedError(
            f"{len(removal.left)} files cannot be deleted yet, such as {removal.left[0].name}: delete the folder whose "
            "name begins with .lora-kiln-check in ComfyUI's output folder"
        )
    return "yes"
