"""Settings of one folder of pictures, from a small file beside them."""

import difflib
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .captions import CaptionFileError, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS_FILE = "dataset.toml"
LARGEST = 10_000
"""bytes"""


@dataclass(frozen=True)
class FolderSettings:
    """What dataset.toml may say of the pictures in its folder and below; None = as Load Dataset says."""

    repeats: int | None = None
    """times in an epoch, in place of the number in the folder's name"""
    regularisation: bool | None = None
    """these pictures keep the model from forgetting"""
    trigger_word: str | None = None
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    flip: bool | None = None
    random_crop: bool | None = None
    shuffle_tags: bool | None = None
    keep_tokens: int | None = None
    tag_dropout: float | None = None
    caption_dropout: float | None = None
    masked_loss: bool | None = None
    unmasked_weight: float | None = None
    loss_weight: float | None = None
    """the loss of these pictures is multiplied by it"""

    def over(self, farther: "FolderSettings") -> "FolderSettings":
        """These settings, and a farther folder's where these say nothing."""
        return FolderSettings(**{**asdict(farther), **self.said()})

    def said(self) -> dict[str, Any]:
        """What is said, by key."""
        return {key: value for key, value in asdict(self).items() if value is not None}


TYPES: dict[str, tuple[type, str]] = {
    field.name: {
        "int | None": (int, "a whole number"),
        "float | None": (float, "a number"),
        "bool | None": (bool, "true or false"),
        "str | None": (str, 'text in "quotes"'),
    }[str(field.type)]
    for field in fields(FolderSettings)
}
"""key -> its type, and that type in words"""


def read_folder_settings(folder: Path, name: str) -> tuple[FolderSettings, list[str]]:
    """The settings in a folder's own file, and the problems in it; none where there is no file.

    Args:
        name: of the file, as messages call it.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return FolderSettings(), []
    try:
        said = tomllib.loads(read_text(path, LARGEST))
    except CaptionFileError as error:
        return FolderSettings(), [str(error)]
    except RecursionError:
        return FolderSettings(), [f"{name} is nested too deep. Write lines such as repeats = 10."]
    except ValueError as error:  # TOMLDecodeError, and what Python says of endless numbers
        return FolderSettings(), [f"{name} is not TOML: {error}. Write lines such as repeats = 10."]
    values, problems = {}, []
    for key, value in said.items():
        if key not in TYPES:
            near = difflib.get_close_matches(key, TYPES, 1)
            hint = f"did you mean {near[0]}?" if near else f"it may be one of: {', '.join(TYPES)}."
            problems.append(f"{name}: {key} is not known; {hint}")
            continue
        wanted, in_words = TYPES[key]
        if type(value) is int and wanted is float:
            value = float(value)
        if type(value) is not wanted:
            problems.append(f"{name}: {key} is {value!r}; it must be {in_words}.")
            continue
        values[key] = value
    return FolderSettings(**values), problems
