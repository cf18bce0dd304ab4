"""dataset.toml: settings of one folder of pictures, beside them."""

import difflib
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError

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
    """Settings in a dataset.toml, for the pictures in its folder and subfolders; None = as in Load Dataset."""

    repeats: StrictInt | None = None
    """times in an epoch, in place of the number in the folder's name"""
    regularisation: StrictBool | None = None
    """these pictures are regularisation pictures"""
    trigger_word: StrictStr | None = None
    caption_prefix: StrictStr | None = None
    caption_suffix: StrictStr | None = None
    flip: StrictBool | None = None
    random_crop: StrictBool | None = None
    shuffle_tags: StrictBool | None = None
    keep_tokens: StrictInt | None = None
    tag_dropout: StrictFloat | None = None
    caption_dropout: StrictFloat | None = None
    masked_loss: StrictBool | None = None
    unmasked_weight: StrictFloat | None = None
    loss_weight: StrictFloat | None = None
    """a factor on the loss of these pictures"""

    def over(self, farther: "FolderSettings") -> "FolderSettings":
        """These settings, and a farther folder's where these are None."""
        return FolderSettings(**{**asdict(farther), **self.set_values()})

    def set_values(self) -> dict[str, Any]:
        """The settings that are not None, by key."""
        return {key: value for key, value in asdict(self).items() if value is not None}


KEYS = tuple(field.name for field in fields(FolderSettings))
_VALIDATOR = TypeAdapter(FolderSettings)
_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": 'text in "quotes"',
}
"""pydantic's error -> the type that a value must have, in words"""


def read_folder_settings(folder: Path, name: str) -> tuple[FolderSettings, list[str]]:
    """The settings in a folder's dataset.toml and the problems in it; a key with a problem is left out.

    Args:
        name: of the file, for messages.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return FolderSettings(), []
    try:
        values = tomllib.loads(read_text(path, LARGEST))
    except CaptionFileError as error:
        return FolderSettings(), [str(error)]
    except RecursionError:
        return FolderSettings(), [f"{name} is nested too deep. Write lines such as repeats = 10."]
    except ValueError as error:  # TOMLDecodeError, and Python's limit on the digits of a number
        return FolderSettings(), [f"{name} is not TOML: {error}. Write lines such as repeats = 10."]
    problems = [f"{name}: {_unknown(key)}" for key in values if key not in KEYS]
    try:
        return _VALIDATOR.validate_python(values), problems
    except ValidationError as error:
        for each in error.errors(include_url=False):
            key = each["loc"][0]
            problems.append(
                f"{name}: {key} is {values.pop(key)!r}; it must be {_TYPES.get(each['type'], each['msg'])}."
            )
        return _VALIDATOR.validate_python(values), problems


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, KEYS, 1)
    return f"{key} is not known; " + (f"did you mean {near[0]}?" if near else f"it may be one of: {', '.join(KEYS)}.")
