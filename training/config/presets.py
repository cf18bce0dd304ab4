"""Starting recipes for kinds of subjects and base models."""

from typing import Any

from ..basics.errors import raise_if_any
from .recipe import DEFAULTS

PRESETS: dict[str, dict[str, Any]] = {
    "SD1.5 character or object": dict(
        rank=16, alpha=16.0, learning_rate=1e-4, scheduler="cosine", warmup=0.05, steps=1500, batch_size=2,
        min_snr_gamma=5.0,
    ),
    "SD1.5 style": dict(
        rank=32, alpha=16.0, targets="attention and feed-forward", learning_rate=1e-4, scheduler="cosine",
        warmup=0.05, steps=2500, batch_size=2, min_snr_gamma=5.0, noise_offset=0.05,
    ),
    "SDXL character or object": dict(
        rank=32, alpha=16.0, learning_rate=1e-4, scheduler="cosine", warmup=0.05, steps=1500, batch_size=1,
        gradient_checkpointing=True, min_snr_gamma=5.0,
    ),
    "SDXL style": dict(
        rank=32, alpha=16.0, targets="attention and feed-forward", learning_rate=5e-5, scheduler="cosine",
        warmup=0.05, steps=2500, batch_size=1, gradient_checkpointing=True, min_snr_gamma=5.0,
        noise_offset=0.0357,
    ),
    "quick test": dict(
        rank=8, alpha=8.0, learning_rate=5e-4, scheduler="constant", steps=100, batch_size=1,
    ),
}  # fmt: skip
"""Values by flat name; fields that a preset does not name keep their defaults."""

CUSTOM = "custom"


def preset_values(name: str) -> dict[str, Any]:
    """The value of every field of the recipe under a preset ("custom": the defaults), by flat name."""
    if name == CUSTOM:
        return dict(DEFAULTS)
    if name not in PRESETS:
        raise_if_any("LoRA Config", [f"preset is {name!r}; choose one of: {', '.join((CUSTOM, *PRESETS))}."])
    return DEFAULTS | PRESETS[name]
