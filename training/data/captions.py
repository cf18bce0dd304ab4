"""Captions: their files, trigger words and tags."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..basics.paths import folded
from ..basics.randomness import python_random

SIDECARS = (".txt", ".caption")
METADATA = "metadata.jsonl"
NAME_KEYS = ("file_name", "image_path")
"""keys of a picture's path in metadata.jsonl: Hugging Face's, musubi's"""
TEXT_KEYS = ("text", "caption", "prompt")
"""keys of its caption, there and in a .json file beside it"""

LARGEST_CAPTION = 100_000
"""bytes; text encoders read a few hundred words at most"""
LARGEST_JSON = 4_000_000
"""bytes; a workflow or other data about the picture may stand beside the caption"""
LARGEST_METADATA = 64 * 2**20
"""bytes; one line per picture"""
MOST_PROBLEMS = 20
"""problems listed of one file"""


class CaptionFileError(ValueError):
    """A caption file that cannot be read; the message names the file."""


def read_text(path: Path, largest: int = LARGEST_CAPTION) -> str:
    """The text of a caption file in UTF-8 or UTF-16, its lines ended by line feeds.

    Args:
        largest: allowed size, bytes.

    Raises:
        CaptionFileError: the file is larger, in another encoding, or holds null characters.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise CaptionFileError(f"{path.name} is larger than {largest:,} bytes: shorten it, or remove it.")
    try:
        text = data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        raise CaptionFileError(
            f"{path.name} is not UTF-8 text (byte {error.start}): save the caption as UTF-8."
        ) from error
    if "\0" in text:
        raise CaptionFileError(f"{path.name} holds null characters, so it is no plain text: save the caption as UTF-8.")
    return _with_line_feeds(text).strip()


def _encoding(data: bytes) -> str:
    """The encoding of a text file, by its byte order mark, else by where its null bytes are."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    for encoding, high in (("utf-16-le", data[1::2]), ("utf-16-be", data[::2])):
        if 2 * high.count(0) > len(high):  # most characters are Latin
            return encoding
    return "utf-8-sig"


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_metadata(folder: Path, name: str = METADATA) -> tuple[dict[str, str], list[str]]:
    """(picture's path as written -> caption, problems) of the metadata.jsonl in a folder.

    Each line is an object with file_name or image_path, and one of text, caption or prompt (Hugging Face's ImageFolder
    format, and musubi's).

    Args:
        name: of the file, in whatever case it is written.
    """
    path = folder / name
    if not path.is_file():
        return {}, []
    captions: dict[str, str] = {}
    bad, doubled = [], []
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
            if captions.setdefault(file, text) != text:
                doubled.append(file)
            captions[file] = text
    wanted = "is not an object with file_name and text: mend or remove the line."
    problems = [f"{path.name} line {number} {wanted}" for number in bad[:MOST_PROBLEMS]]
    if len(bad) > MOST_PROBLEMS:
        problems.append(f"{path.name} has {len(bad) - MOST_PROBLEMS} more such lines.")
    if doubled:
        problems.append(
            f"{path.name} has several captions for {doubled[0]!r:.200}{_and_others(len(doubled))}: the last one is "
            "used. Leave one line a picture."
        )
    return captions, problems


def read_json_caption(path: Path) -> str | None:
    """The caption in a .json file beside a picture, an object with text, caption or prompt; None in any other file.

    Such a file may be any program's, so one that cannot be read is no fault of the picture.
    """
    try:
        return _text_of(json.loads(read_text(path, LARGEST_JSON)))
    except (ValueError, RecursionError, OSError):
        return None


def match_metadata(
    captions: Mapping[str, str], folder: Path, pictures: Iterable[Path]
) -> tuple[dict[Path, str], list[str]]:
    """(picture -> caption, problems) of the entries of a metadata.jsonl.

    An entry belongs to the picture at its path below the folder. A path may also begin with the folder itself, be
    written with `./` or backslashes, or differ in case or Unicode form.

    Args:
        captions: of `read_metadata`.
        folder: of the metadata.jsonl.
    """
    exact = {path.relative_to(folder).as_posix(): path for path in pictures if path.is_relative_to(folder)}
    near: dict[str, Path | None] = {}
    for name, path in exact.items():
        near[folded(name)] = None if folded(name) in near else path  # None: which of several is not said
    found = {exact[name]: caption for name, caption in captions.items() if name in exact}
    lost = []
    for name, caption in captions.items():
        if name in exact:
            continue
        path = next((path for way in _ways_to_write(name, folder.name) if (path := near.get(way))), None)
        if path is None or found.setdefault(path, caption) != caption:
            lost.append(name)
    if not lost:
        return found, []
    return found, [
        f"{METADATA}: {len(lost)} of {len(captions)} entries name no picture here, the first {lost[0]!r:.200}: write "
        "file_name as the picture's path below the folder of this file, or put the picture there."
    ]


def _ways_to_write(name: str, folder: str) -> list[str]:
    """The folded paths below a folder that an entry may mean: its own, and what follows the folder's name in it."""
    parts = [part for part in folded(name).replace("\\", "/").split("/") if part not in ("", ".")]
    starts = [0, *(place for place, part in enumerate(parts, 1) if part == folded(folder))]
    return ["/".join(parts[start:]) for start in starts]


def _entry(line: str) -> tuple[str, str]:
    """(picture's path, caption) of a line.

    Raises:
        ValueError: the line is too long, not JSON, or lacks a field.
        RecursionError: the line is nested too deep.
    """
    entry = json.loads(line) if len(line) <= LARGEST_CAPTION else None
    text = _text_of(entry)
    if not isinstance(entry, dict) or text is None:
        raise ValueError("no text")
    name = next((entry[key] for key in NAME_KEYS if isinstance(entry.get(key), str)), None)
    if name is None:
        raise ValueError("no file_name")
    return name, text


def _text_of(entry: Any) -> str | None:
    """The caption in a JSON object; None without one, or with null characters in it."""
    texts = (entry[key] for key in TEXT_KEYS if isinstance(entry.get(key), str)) if isinstance(entry, dict) else ()
    text = next(iter(texts), None)
    return None if text is None or "\0" in text else _with_line_feeds(text).strip()


def _and_others(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


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
