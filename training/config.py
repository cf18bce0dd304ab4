"""The recipe of a run: a frozen dataclass whose contradictions are refused on construction."""

import math
from dataclasses import dataclass, fields
from typing import Any

from .problems import raise_if_any

TARGETS = ("attention", "attention and feed-forward", "all linear and convolution")
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor")
SCHEDULERS = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial")
PRECISIONS = ("auto", "bf16", "fp32")
SAVE_PRECISIONS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class LoRAConfig:
    """Everything that shapes a training run, apart from the data."""

    rank: int = 16
    """Inner dimension of each adapter (network_dim in kohya's files)."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank."""
    targets: str = "attention"
    """Which layers get an adapter; one of TARGETS."""
    optimizer: str = "adamw"
    """One of OPTIMIZERS."""
    learning_rate: float = 1e-4
    """Peak learning rate, reached after the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""
    scheduler: str = "cosine"
    """How the learning rate goes on after the warm-up; one of SCHEDULERS."""
    warmup: float = 0.0
    """Below 1: share of all steps; from 1 on: number of steps."""
    steps: int = 1500
    """Optimizer steps; ignored where epochs is above 0."""
    epochs: int = 0
    """Passes over the data, repeats included; 0 = use steps."""
    batch_size: int = 1
    """Pictures in one forward pass."""
    gradient_accumulation: int = 1
    """Forward passes whose gradients are averaged for one optimizer step."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this total norm; 0 = off."""
    min_snr_gamma: float = 0.0
    """Min-SNR-gamma loss weighting (Hang et al., arXiv:2303.09556); 0 = off, 5 when used."""
    noise_offset: float = 0.0
    """Per-channel shift of the noise, in standard deviations; 0 = off."""
    precision: str = "auto"
    """Arithmetic of the base model: auto = bf16 where the GPU has it, else fp32. Adapters are always fp32."""
    save_precision: str = "fp16"
    """Number format of the trained LoRA."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    seed: int = 0
    """All random choices follow from it."""
    save_every: int = 0
    """Steps between LoRA files written on the way; 0 = off."""
    sample_every: int = 0
    """Steps between sample pictures; 0 = off."""
    sample_prompts: tuple[str, ...] = ()
    """One picture each, at every sampling."""
    sample_steps: int = 20
    """Sampler steps of a sample picture."""
    sample_guidance: float = 7.0
    """Classifier-free guidance of a sample picture; 1 = off."""

    def __post_init__(self) -> None:
        problems = [
            *_at_least(self, 1, "rank", "batch_size", "gradient_accumulation", "sample_steps"),
            *_at_least(self, 0, "warmup", "epochs", "max_grad_norm", "min_snr_gamma", "weight_decay"),
            *_at_least(self, 0, "noise_offset", "save_every", "sample_every", "seed"),
            *_above(self, 0, "alpha", "learning_rate"),
            *_one_of(self, TARGETS, "targets"),
            *_one_of(self, OPTIMIZERS, "optimizer"),
            *_one_of(self, SCHEDULERS, "scheduler"),
            *_one_of(self, PRECISIONS, "precision"),
            *_one_of(self, SAVE_PRECISIONS, "save_precision"),
        ]
        if self.epochs == 0:
            problems += _at_least(self, 1, "steps")
            if self.warmup >= 1 and self.warmup >= self.steps >= 1:
                problems.append(
                    f"warmup is {self.warmup:g} steps of {self.steps}: it must end before the run does. "
                    "Lower warmup (values below 1 are a share of the run) or raise steps."
                )
        if self.sample_every > 0 and not self.sample_prompts:
            problems.append(
                f"sample_every is {self.sample_every}, but sample_prompts is empty: "
                "write one prompt a line, or set sample_every to 0."
            )
        raise_if_any("LoRA Config", problems)

    def warmup_steps(self, total_steps: int) -> int:
        """The warm-up in optimizer steps."""
        return int(self.warmup if self.warmup >= 1 else round(self.warmup * total_steps))

    @property
    def scale(self) -> float:
        """What the adapters' output is multiplied by (Hu et al., arXiv:2106.09685)."""
        return self.alpha / self.rank


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
"""Starting recipes; what a preset does not name keeps the dataclass's default."""

CUSTOM = "custom"


def preset_values(name: str) -> dict[str, Any]:
    """Every field of the recipe as the preset sets it ("custom": the defaults)."""
    defaults = {field.name: field.default for field in fields(LoRAConfig)}
    if name == CUSTOM:
        return defaults
    if name not in PRESETS:
        raise_if_any("LoRA Config", [f"preset is {name!r}; choose one of: {', '.join((CUSTOM, *PRESETS))}."])
    return defaults | PRESETS[name]


def _numbers(config: LoRAConfig, names: tuple[str, ...]):
    for name in names:
        value = getattr(config, name)
        yield name, value, isinstance(value, int | float) and math.isfinite(value)


def _at_least(config: LoRAConfig, lowest: float, *names: str) -> list[str]:
    return [
        f"{name} is {value!r}; it must be a number of at least {lowest}."
        for name, value, is_number in _numbers(config, names)
        if not is_number or value < lowest
    ]


def _above(config: LoRAConfig, limit: float, *names: str) -> list[str]:
    return [
        f"{name} is {value!r}; it must be a number above {limit}."
        for name, value, is_number in _numbers(config, names)
        if not is_number or value <= limit
    ]


def _one_of(config: LoRAConfig, allowed: tuple[str, ...], name: str) -> list[str]:
    value = getattr(config, name)
    return [] if value in allowed else [f"{name} is {value!r}; choose one of: {', '.join(allowed)}."]
