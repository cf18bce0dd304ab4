"""Inputs made from the recipe's fields, with the recipe's own defaults and limits."""

from collections.abc import Collection, Mapping
from typing import Any

from comfy_api.latest import io

from ..training.config import DEFAULTS, LIMITS


class Fields:
    """Makes optional inputs whose defaults are a recipe's values.

    Args:
        defaults: flat name of a recipe's field -> value.
    """

    def __init__(self, defaults: Mapping[str, Any] = DEFAULTS):
        self.defaults = defaults

    def integer(self, name: str, tooltip: str, advanced: bool = True, **more: Any) -> io.Int.Input:
        lowest, highest = map(int, LIMITS[name].offered)
        return io.Int.Input(
            name, default=self.defaults[name], min=lowest, max=highest, tooltip=tooltip, advanced=advanced,
            optional=True, **more,
        )  # fmt: skip

    def number(self, name: str, tooltip: str, step: float = 0.01, advanced: bool = True) -> io.Float.Input:
        lowest, highest = map(float, LIMITS[name].offered)
        return io.Float.Input(
            name, default=self.defaults[name], min=lowest, max=highest, step=step, round=False,  # pyright: ignore[reportArgumentType]
            tooltip=tooltip, advanced=advanced, optional=True,
        )  # fmt: skip

    def choice(self, name: str, options: Collection[str], tooltip: str, advanced: bool = True) -> io.Combo.Input:
        return io.Combo.Input(
            name, options=list(options), default=self.defaults[name], tooltip=tooltip, advanced=advanced, optional=True
        )

    def switch(self, name: str, tooltip: str, advanced: bool = True) -> io.Boolean.Input:
        return io.Boolean.Input(name, default=self.defaults[name], tooltip=tooltip, advanced=advanced, optional=True)

    def text(self, name: str, tooltip: str, advanced: bool = True, example: str = "") -> io.String.Input:
        """Several lines; the canvas shows no name beside such a field, so it stands in the empty one."""
        default = self.defaults[name]
        return io.String.Input(
            name, default=default if isinstance(default, str) else "\n".join(default), multiline=True, tooltip=tooltip,
            advanced=advanced, optional=True, placeholder=f"{name}, for example:\n{example}" if example else name,
        )  # fmt: skip


def present(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are there: an optional input that is not connected and has no widget comes as None."""
    return {name: value for name, value in values.items() if value is not None}


def not_default(values: dict[str, Any]) -> dict[str, Any]:
    """The values that differ from their field's default, for nodes that change a recipe and leave the rest as it is."""
    return {name: value for name, value in present(values).items() if value != DEFAULTS[name]}
