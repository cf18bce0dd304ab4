"""Captions: where they come from, and what a caption becomes when a sample is drawn."""

import json
import re
from pathlib import Path

from ..basics.files import atomic_write
from ..basics.randomness import python_random

SIDECARS = (".txt", ".caption")
METADATA = "metadata.jsonl"


LARGEST_CAPTION = 100_000
"""bytes; the longest text encoders read some hundred words"""
LARGEST_METADATA = 64 * 2**20
"""bytes; a line a picture"""
MOST_PROBLEMS = 20
"""that are said of one file"""


class CaptionFileError(ValueError):
    """A caption file that cannot be read; the message names it."""


def read_text(path: Path, largest: int = LARGEST_CAPTION) -> str:
    """The text of a caption file, UTF-8 or UTF-16 with its mark.

    Args:
        largest: bytes.

    Raises:
        CaptionFileError: larger, or of another encoding.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise CaptionFileError(f"{path.name} is larger than {largest:,} bytes: shorten it, or remove it.")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding).strip()
    except UnicodeDecodeError as error:
        raise CaptionFileError(
            f"{path.name} is not UTF-8 text (byte {error.start}): save the caption as UTF-8."
        ) from error


def read_metadata(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Captions from a metadata.jsonl in the folder: file name -> caption, and the problems met.

    Each line is an object with file_name and one of text, caption or prompt (the Hugging Face image folder form).
    """
    path = folder / METADATA
    if not path.is_file():
        return {}, []
    captions, bad = {}, []
    try:
        lines = read_text(path, LARGEST_METADATA).split("\n")
    except CaptionFileError as error:
        return {}, [str(error)]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            file, text = _entry(line)
        except (ValueError, RecursionError):
            bad.append(number)
        else:
            captions[file] = text
    wanted = "is not an object with file_name and text: mend or remove the line."
    problems = [f"{METADATA} line {number} {wanted}" for number in bad[:MOST_PROBLEMS]]
    if len(bad) > MOST_PROBLEMS:
        problems.append(f"{METADATA} has {len(bad) - MOST_PROBLEMS} more such lines.")
    return captions, problems


def _entry(line: str) -> tuple[str, str]:
    """(file name, caption) of a line.

    Raises:
        ValueError, RecursionError: it is no such line.
    """
    entry = json.loads(line) if len(line) <= LARGEST_CAPTION else None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ValueError("no file_name")
    text = next((entry[key] for key in ("text", "caption", "prompt") if isinstance(entry.get(key), str)), None)
    if text is None:
        raise ValueError("no text")
    return entry["file_name"], text.strip()


def sidecar(picture: Path) -> Path | None:
    """The caption file beside a picture, if there is one."""
    return next((path for ending in SIDECARS if (path := picture.with_suffix(ending)).is_file()), None)


def write_sidecar(picture: Path, caption: str, overwrite: bool) -> bool:
    """Writes the caption beside the picture: into the sidecar that is there, else .txt.

    Never over text that is there unless asked. The file is whole at any moment.

    Returns:
        Whether it was written.

    Raises:
        OSError: it cannot be.
    """
    existing = [path for ending in SIDECARS if (path := picture.with_suffix(ending)).exists()]
    if not overwrite and any(path.read_bytes().strip() for path in existing):
        return False
    target = existing[0] if existing else picture.with_suffix(SIDECARS[0])
    with atomic_write(target) as unfinished, unfinished.open("x", encoding="utf-8", newline="\n") as file:
        file.write(caption + "\n")
    return True


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word in it: in front, unless it already stands somewhere."""
    trigger = trigger.strip()
    if not trigger or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption, re.IGNORECASE):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def shuffle_tags(caption: str, keep_tokens: int, *key: int | str) -> str:
    """The comma-separated tags in another order, the first keep_tokens in place; the key decides the order."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    fixed, loose = tags[:keep_tokens], tags[keep_tokens:]
    python_random(*key).shuffle(loose)
    return ", ".join(fixed + loose)


def drop_tags(caption: str, keep_tokens: int, share: float, *key: int | str) -> str:
    """The caption without some of its tags: each but the first keep_tokens is left out with the chance `share`."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    random = python_random(*key)
    return ", ".join(tags[:keep_tokens] + [tag for tag in tags[keep_tokens:] if random.random() >= share])


def one_line(caption: str) -> str:
    """The caption with its line breaks turned into spaces."""
    return " ".join(line.strip() for line in caption.splitlines() if line.strip())
