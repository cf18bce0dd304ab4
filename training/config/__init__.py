"""The recipe: nested frozen dataclasses whose values are checked on construction, and presets of it."""

from ..adapters import KINDS
from ..adapters.settings import TARGETS, AdapterConfig
from .objective import HUBER_SCHEDULES, LOSSES, TIMESTEP_SAMPLINGS, ObjectiveConfig
from .optimization import SCHEDULERS, OptimizationConfig
from .optimizers import OPTIMIZERS, OptimizerKind
from .presets import CUSTOM, PRESETS, preset_values
from .recipe import DEFAULTS, FIELDS, GROUPS, LIMITS, LoRAConfig
from .run import BASE_PRECISIONS, ON_DIVERGENCE, PRECISIONS, SAVE_PRECISIONS, RunConfig

ADAPTERS = KINDS

__all__ = [
    "ADAPTERS",
    "BASE_PRECISIONS",
    "CUSTOM",
    "DEFAULTS",
    "FIELDS",
    "GROUPS",
    "HUBER_SCHEDULES",
    "LIMITS",
    "LOSSES",
    "ON_DIVERGENCE",
    "OPTIMIZERS",
    "PRECISIONS",
    "PRESETS",
    "SAVE_PRECISIONS",
    "SCHEDULERS",
    "TARGETS",
    "TIMESTEP_SAMPLINGS",
    "AdapterConfig",
    "LoRAConfig",
    "ObjectiveConfig",
    "OptimizationConfig",
    "OptimizerKind",
    "RunConfig",
    "preset_values",
]
