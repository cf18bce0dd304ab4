"""Another trainer's recipe, converted."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..basics.errors import InputError
from ..config import DEFAULTS, LoRAConfig
from ..data.folder_settings import SETTINGS_FILE

SETTINGS_ALONE = frozenset({"caption_prefix", "caption_suffix", "loss_weight"})
"""settings of dataset.toml that Load Dataset does not have"""


@dataclass(frozen=True)
class Recipe:
    """Another trainer's recipe as our settings, and an account of every key of its file."""

    source: str
    """the kind of file, such as "sd-scripts TOML\""""
    values: dict[str, Any]
    """field of LoRAConfig, by its flat name -> value"""
    dataset: dict[str, Any]
    """field of Load Dataset or of dataset.toml -> value"""
    carried: tuple[str, ...]
    """a line per key that was carried over: what it became"""
    defaults: tuple[str, ...]
    """a line per key that the file lacks: that trainer's default"""
    ignored: tuple[str, ...]
    """a line per key without effect here: the reason"""
    missing: tuple[str, ...]
    """a line per key that could not be carried over: its effect in that trainer"""
    origins: dict[str, str]
    """field of LoRAConfig -> the file's key that it comes from"""
    changed: tuple[str, ...] = ()
    """a line per field that the user changed"""

    @property
    def config(self) -> LoRAConfig:
        """The recipe as a LoRAConfig.

        Raises:
            InputError: values out of their limits, or that exclude each other; each sentence names the file's keys.
        """
        try:
            return LoRAConfig.of(**self.values)
        except InputError as error:
            raise InputError(
                f"The recipe ({self.source})", [self._with_keys(each) for each in error.problems]
            ) from None

    def with_changes(self, values: Mapping[str, Any]) -> "Recipe":
        """The recipe with other values for some fields of LoRAConfig; setting steps alone turns epochs off."""
        if "steps" in values and "epochs" not in values and self.values.get("epochs"):
            values = {**values, "epochs": 0}
        before = DEFAULTS | self.values
        lines = [f"{name} = {_plain(value)} (was {_plain(before[name])})" for name, value in values.items()]
        origins = {field: key for field, key in self.origins.items() if field not in values}
        return replace(self, values={**self.values, **values}, origins=origins, changed=tuple(lines))

    def report(self) -> str:
        """The account of all keys as text, the lost ones first."""
        data = {name: _plain(value) for name, value in self.dataset.items() if name not in SETTINGS_ALONE}
        alone = {name: json.dumps(value) for name, value in self.dataset.items() if name in SETTINGS_ALONE}
        sections = {
            "Not carried over": self.missing,
            "Changed by hand": self.changed,
            "To be set in Load Dataset": [f"{name} = {value}" for name, value in data.items()],
            f"To be written into {SETTINGS_FILE} in the pictures' folder": [f"{n} = {v}" for n, v in alone.items()],
            "Carried over": self.carried,
            "Not in the file, so its trainer's default": self.defaults,
            "Without effect here": self.ignored,
        }
        head = (
            f"{self.source}: {len(self.carried)} carried over, {len(self.missing)} not carried over, "
            f"{len(self.ignored)} without effect here"
        )
        if not self.origins:
            head += "\nThe file says nothing of the training: the config holds LoRA Config's preset custom"
        return "\n\n".join(
            [
                head,
                *("\n".join([title, *(f"- {line}" for line in lines)]) for title, lines in sections.items() if lines),
            ]
        )

    def _with_keys(self, problem: str) -> str:
        keys = [key for field, key in self.origins.items() if re.search(rf"\b{field}\b", problem)]
        return f"{problem} In the file: {', '.join(dict.fromkeys(keys))}." if keys else problem


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
