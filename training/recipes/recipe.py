"""What a foreign recipe came to."""

import re
from dataclasses import dataclass
from typing import Any

from ..config import LoRAConfig
from ..problems import InputError


@dataclass(frozen=True)
class Recipe:
    """A foreign recipe in our own terms, and an account of every key of its file."""

    source: str
    """what kind of file it was, as in "sd-scripts TOML\""""
    values: dict[str, Any]
    """fields of LoRAConfig"""
    dataset: dict[str, Any]
    """fields of Load Dataset"""
    carried: tuple[str, ...]
    """a line a key: what it became"""
    defaults: tuple[str, ...]
    """a line a key that the file lacks: what that trainer would have taken"""
    ignored: tuple[str, ...]
    """a line a key without effect here: why"""
    missing: tuple[str, ...]
    """a line a key that could not be carried over: what it would have done"""
    origins: dict[str, str]
    """field of LoRAConfig -> key of the file"""

    @property
    def config(self) -> LoRAConfig:
        """The recipe as LoRA Config takes it.

        Raises:
            InputError: the values contradict each other; each sentence names the file's keys.
        """
        try:
            return LoRAConfig(**self.values)
        except InputError as error:
            raise InputError(
                f"The recipe ({self.source})", [self._with_keys(each) for each in error.problems]
            ) from None

    def report(self) -> str:
        """The account, to be read by a person; what was lost comes first."""
        data = [f"{name} = {_plain(value)}" for name, value in self.dataset.items()]
        sections = {
            "Not carried over": self.missing,
            "To be set in Load Dataset": data,
            "Carried over": self.carried,
            "Not in the file, so its trainer's default": self.defaults,
            "Without effect here": self.ignored,
        }
        if not self.values:
            data.append("the file says nothing of the training: the config holds LoRA Config's own defaults")
        head = (
            f"{self.source}: {len(self.carried)} carried over, {len(self.missing)} not carried over, "
            f"{len(self.ignored)} without effect here"
        )
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
