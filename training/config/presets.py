"""Starting recipes, by what is trained and for which base model."""

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
"""Starting recipes; what a preset does not name keeps its default."""

CUSTOM = "custom"


def preset_values(name: str) -> dict[str, Any]:
    """Every field of the recipe as the preset sets it ("custom": the defaults)."""
    if name == CUSTOM:
        return dict(DEFAULTS)
    if name not in PRESETS:
        raise_if_any("LoRA Config", [f"preset is {name!r}; choose one of: {', '.join((CUSTOM, *PRESETS))}."])
    return DEFAULTS | PRESETS[name]
