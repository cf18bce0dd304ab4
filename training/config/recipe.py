"""The recipe of a run: four groups of settings, each handed to the part of the trainer that needs it."""

from dataclasses import Field, dataclass, field, fields
from typing import Any

from ..adapters.settings import AdapterConfig
from ..basics.errors import InputError, raise_if_any
from ..basics.numbers import Limits
from ..basics.settings import Settings, public_name
from .objective import ObjectiveConfig
from .optimization import OptimizationConfig
from .run import RunConfig

GROUPS: dict[str, type[Settings]] = {
    "adapter": AdapterConfig,
    "optimization": OptimizationConfig,
    "objective": ObjectiveConfig,
    "run": RunConfig,
}


@dataclass(frozen=True)
class LoRAConfig:
    """All settings of a training run, apart from those of the data.

    Files, nodes and presets hold a recipe as one flat table of names and values: `of` reads it, `flat` writes it.
    """

    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def of(cls, **values: Any) -> "LoRAConfig":
        """A recipe from values by their flat names; other fields keep their defaults.

        Raises:
            InputError: with the problems of all groups.
            TypeError: a name is no field of a recipe.
        """
        if unknown := values.keys() - DEFAULTS.keys():
            raise TypeError(f"a recipe has no field {', '.join(sorted(unknown))}")
        groups: dict[str, Settings] = {}
        problems: list[str] = []
        for name, group in GROUPS.items():
            named = {each.name: values[public_name(each)] for each in fields(group) if public_name(each) in values}
            try:
                groups[name] = group(**named)
            except InputError as error:
                problems += error.problems
        raise_if_any("LoRA Config", problems)
        return cls(**groups)  # pyright: ignore[reportArgumentType]

    def flat(self) -> dict[str, Any]:
        """Every value by its flat name."""
        return {name: value for group in GROUPS for name, value in getattr(self, group).flat().items()}

    def changed(self, **values: Any) -> "LoRAConfig":
        """The recipe with other values, by their flat names; raises as `of` does."""
        return LoRAConfig.of(**{**self.flat(), **values})


FIELDS: dict[str, Field[Any]] = {public_name(each): each for group in GROUPS.values() for each in fields(group)}
"""Every field of a recipe, by its flat name."""
DEFAULTS: dict[str, Any] = {name: each.default for name, each in FIELDS.items()}
LIMITS: dict[str, Limits] = {
    name: each.metadata["limits"] for name, each in FIELDS.items() if "limits" in each.metadata
}
"""The limits of every field that is a number."""
