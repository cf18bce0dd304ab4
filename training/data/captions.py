"""Captions: their files, trigger words and tags."""

import json
from pathlib import Path

from ..basics.files import atomic_write
from ..basics.randomness import python_random

SIDECARS = (".txt", ".caption")
METADATA = "metadata.jsonl"


LARGEST_CAPTION = 100_000
"""bytes; text encoders read a few hundred words at most"""
LARGEST_METADATA = 64 * 2**20
"""bytes; one line per picture"""
MOST_PROBLEMS = 20
"""problems listed of one file"""


class CaptionFileError(ValueError):
    """A caption file that cannot be read; the message names the file."""


def read_text(path: Path, largest: int = LARGEST_CAPTION) -> str:
    """The text of a caption file in UTF-8, or in UTF-16 with a byte order mark.

    Args:
        largest: allowed size, bytes.

    Raises:
        CaptionFileError: the file is larger, or in another encoding.
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
    """(file name -> caption, problems) of the metadata.jsonl in a folder.

    Each line is an object with file_name and one of text, caption or prompt (Hugging Face's ImageFolder format).
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
        ValueError: the line is too long, not JSON, or lacks a field.
        RecursionError: the line is nested too deep.
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
    """Writes a picture's caption atomically: into its existing sidecar file, else into a new .txt file.

    Args:
        overwrite: replace a caption that is there; otherwise only a blank file is replaced.

    Returns:
        Whether the caption was written.

    Raises:
        OSError: the disk is full, the folder read-only ...
    """
    existing = [path for ending in SIDECARS if (path := picture.with_suffix(ending)).exists()]
    if not overwrite and any(path.read_bytes().strip() for path in existing):
        return False
    target = existing[0] if existing else picture.with_suffix(SIDECARS[0])
    with atomic_write(target) as unfinished, unfinished.open("x", encoding="utf-8", newline="\n") as file:
        file.write(caption + "\n")
    return True


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word prepended, unless it contains the word already."""
    trigger = trigger.strip()
    if not trigger or _has_word(caption.casefold(), trigger.casefold()):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def _has_word(text: str, word: str) -> bool:
    """Whether the word stands in the text with no letter, digit or underscore beside it."""
    at = text.find(word[0])
    while at >= 0:
        end = at + len(word)
        if not _is_letter(text[at - 1 : at]) and not _is_letter(text[end : end + 1]) and text.startswith(word, at):
            return True
        at = text.find(word[0], at + 1)
    return False


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_"


def shuffle_tags(caption: str, keep_tokens: int, *key: int | str) -> str:
    """Shuffles the comma-separated tags but the first keep_tokens; the order is a function of the key."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    fixed, loose = tags[:keep_tokens], tags[keep_tokens:]
    python_random(*key).shuffle(loose)
    return ", ".join(fixed + loose)


def drop_tags(caption: str, keep_tokens: int, share: float, *key: int | str) -> str:
    """Drops each tag but the first keep_tokens with probability `share`; the choice is a function of the key."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    random = python_random(*key)
    return ", ".join(tags[:keep_tokens] + [tag for tag in tags[keep_tokens:] if random.random() >= share])


def one_line(caption: str) -> str:
    """The caption with its line breaks replaced by spaces."""
    return " ".join(line.strip() for line in caption.splitlines() if line.strip())
