"""The disk of ComfyUI's output folder: what writing, replacing, deleting and naming files does there."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

from check.ground import Ground, long_form
from check.outcome import FailedError

MEGABYTES = 64
REPLACED, HELD_SECONDS = 20, 0.03
LEAST_FREE = 2e9
"""bytes for a run's checkpoints and pictures"""
NAMES = ("J\u00f6rg", "\u732b \u5bfa", "\U0001f98a fox", "\u0130stanbul \u00df", "e\u0301t\u00e9")
"""letters beyond ASCII, of two and three bytes, an emoji, letters whose case is odd, a composed accent"""
LENGTHS = (4000, 1000, 400, 300, 259)
"""characters of a path; Windows refuses more than 259 unless long paths are turned on"""
SYNCED = {
    "onedrive": "OneDrive", "dropbox": "Dropbox", "google drive": "Google Drive", "googledrive": "Google Drive",
    "my drive": "Google Drive", "mobile documents": "iCloud Drive", "iclouddrive": "iCloud Drive",
    "cloudstorage": "a cloud's folder", "nextcloud": "Nextcloud",
}  # fmt: skip
"""how a part of a path begins -> the program that copies what lies there to a cloud"""


def free_space(ground: Ground) -> str:
    usage = shutil.disk_usage(ground.folder)
    figure = f"{usage.free / 1e9:.0f} GB free of {usage.total / 1e9:.0f} GB"
    if usage.free < LEAST_FREE:
        raise FailedError(f"{figure}: a run's checkpoints need {LEAST_FREE / 1e9:.0f} GB")
    return figure


def write(ground: Ground) -> str:
    """Writes a file as the pack writes all of its files, synced to the disk."""
    from lora_kiln.training.basics.files import atomic_write

    block, path = os.urandom(2**20), ground.folder / "written"
    started = time.monotonic()
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        for _ in range(MEGABYTES):
            file.write(block)
    seconds = time.monotonic() - started
    if path.stat().st_size != MEGABYTES * 2**20:
        raise FailedError(f"{path.stat().st_size} bytes of {MEGABYTES * 2**20} are there")
    path.unlink()
    return f"{MEGABYTES} MB in {seconds:.2f} s"


def replace(ground: Ground) -> str:
    """Replaces a file while another thread reads it again and again, as a page does that watches a run."""
    from lora_kiln.training.basics.files import atomic_write

    path = ground.folder / "read.json"
    path.write_text("0")
    with held(path.parent) as seen:
        started = time.monotonic()
        for number in range(1, REPLACED + 1):
            with atomic_write(path) as unfinished:
                unfinished.write_text(str(number))
        seconds = time.monotonic() - started
    if path.read_text() != str(REPLACED):
        raise FailedError(f"the file holds {path.read_text()!r:.20} after {REPLACED} writes")
    return f"{REPLACED} times in {seconds:.2f} s, opened {seen[0]} times meanwhile"


@contextlib.contextmanager
def held(folder: Path) -> Iterator[list[int]]:
    """Inside, another thread opens every file in a folder and its subfolders, again and again, and holds each a while.

    Gives the number of times so far, as the only entry of a list.
    """
    over, seen = threading.Event(), [0]

    def read() -> None:
        while not over.wait(0.001):
            with contextlib.suppress(OSError):  # a folder that has gone meanwhile
                for path in folder.rglob("*"):
                    with contextlib.suppress(OSError), path.open("rb") as file:
                        file.read(1)
                        seen[0] += 1
                        over.wait(HELD_SECONDS)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def delete_mapped(ground: Ground) -> str:
    """What the system does when a file is deleted that is mapped into memory."""
    path = ground.folder / "mapped"
    path.write_bytes(bytes(2**16))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        file.close()
        with contextlib.suppress(PermissionError):
            path.unlink()
        refused = path.exists()
    if not refused:
        return "allowed"
    path.unlink()
    return "refused, and allowed after: nothing may stay mapped here"


def delete_read(ground: Ground) -> str:
    """Deletes a LoRA file that the pack has read, with its numbers in use."""
    import torch
    from lora_kiln.training.lora.files import read_lora_file
    from lora_kiln.training.lora.save import save_lora

    tensors = {f"lora_unet_a.lora_{side}.weight": torch.ones(64, 64) for side in ("up", "down")}
    path = save_lora(ground.folder / "read.safetensors", tensors, {})
    lora = read_lora_file(path)
    try:
        path.unlink()
    except PermissionError as error:
        raise FailedError(f"refused ({error.strerror}): delete and overwrite LoRAs after a restart") from error
    return f"yes, with {len(lora)} tensors of it in use"


def long_path(ground: Ground) -> str:
    """The longest path of a file that can be written and read."""
    longest = next((length for length in LENGTHS if _takes(ground.folder, length)), 0)
    if longest < LENGTHS[-1]:
        raise FailedError(f"not even {LENGTHS[-1]} characters: move ComfyUI to a folder with a shorter path")
    if longest > LENGTHS[-1]:
        return f"{longest:,} characters"
    return f"{longest} characters; more are refused: keep names of LoRAs short, or turn on Windows' LongPathsEnabled"


def _takes(folder: Path, length: int) -> bool:
    """Whether a file whose path has so many characters can be written, read and deleted."""
    top = path = folder / "long"
    while length - len(str(path)) > 102:
        path /= "x" * 99
    path /= "y" * (length - len(str(path)) - 1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
        return path.read_bytes() == b"1"
    except OSError:
        return False
    finally:
        shutil.rmtree(long_form(top), ignore_errors=True)


def case_rule(ground: Ground) -> str:
    (ground.folder / "Case").write_bytes(b"")
    (ground.folder / unicodedata.normalize("NFC", NAMES[-1])).write_bytes(b"")
    are_one = {
        "in case": (ground.folder / "cASE").exists(),
        "in their accents' form": (ground.folder / unicodedata.normalize("NFD", NAMES[-1])).exists(),
    }
    told = [f"names that differ {how} alone are {'one file' if one else 'two files'}" for how, one in are_one.items()]
    return "; ".join(told)


def other_letters(ground: Ground) -> str:
    """Files with letters beyond ASCII in their names, written and read by all ways that the pack uses."""
    import torch
    from lora_kiln.training.basics.files import atomic_write
    from PIL import Image
    from safetensors.torch import load_file, save_file

    for name in NAMES:
        folder = ground.folder / name
        folder.mkdir()
        with atomic_write(folder / f"{name}.txt") as unfinished:
            unfinished.write_text(name, "utf-8")
        save_file({"a": torch.ones(2)}, folder / f"{name}.safetensors")
        Image.new("RGB", (16, 16)).save(folder / f"{name}.png")
        with Image.open(folder / f"{name}.png") as image:
            good = image.size == (16, 16) and load_file(folder / f"{name}.safetensors")["a"].sum() == 2
        listed = {unicodedata.normalize("NFC", path.name) for path in folder.iterdir()}
        good = good and (folder / f"{name}.txt").read_text("utf-8") == name
        wanted = {unicodedata.normalize("NFC", f"{name}{ending}") for ending in (".txt", ".safetensors", ".png")}
        if not good or listed != wanted:
            raise FailedError(f"files named {name!a} are not what was written")
    own = "has such letters" if not str(ground.output).isascii() else "has none"
    return f"{len(NAMES)} names; the path of ComfyUI's output folder {own}"


def synced_folder(ground: Ground) -> str:
    found = synced_by(ground.output, os.environ)
    if not found:
        return "ComfyUI's output folder lies in none"
    return f"ComfyUI's output folder lies in {found}, which copies each checkpoint to the cloud: move it, or pause that"


def synced_by(folder: Path, environ: Mapping[str, str]) -> str:
    """The program that copies what lies in a folder to a cloud, by the folder's path; empty: none is known."""
    roots = {value for name, value in environ.items() if name.lower().startswith("onedrive") and value}
    if any(folder.is_relative_to(root) for root in roots):
        return "OneDrive"
    parts = [part.lower() for part in folder.parts]
    return next((name for start, name in SYNCED.items() for part in parts if part.startswith(start)), "")
