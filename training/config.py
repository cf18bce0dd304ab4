"""The recipe of a run: a frozen dataclass whose contradictions are refused on construction."""

from dataclasses import dataclass, fields
from math import inf
from typing import Any

from .adapters.layer_rules import parse_layer_rules
from .basics.errors import InputError, raise_if_any
from .basics.numbers import Limits, is_finite, keep_as_whole, outside

ADAPTERS = ("lora", "dora", "loha", "lokr", "oft")
TARGETS = (
    "attention",
    "attention and feed-forward",
    "attention, feed-forward and convolutions",
    "all linear and convolution",
    "SDXL style blocks",
    "SDXL content blocks",
)
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free")
SCHEDULERS = ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "rex")
LOSSES = ("l2", "huber", "smooth_l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
TIMESTEPS = ("auto", "uniform", "logit_normal", "shift", "resolution_shift")
LOWEST_PRODIGY_RATE = 0.1
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
BASE_PRECISIONS = ("as loaded", "fp8", "fp8 matmul")
ON_DIVERGENCE = ("stop", "step back")
"""step back: to the last checkpoint, with half the learning rate"""
SAVE_PRECISIONS = ("fp16", "bf16", "fp32")
MOST_RANKS = 1024
"""of any adapter but lokr, where a rank above every layer's stands for whole factors"""
LIMITS = {
    "rank": Limits(1, inf, offered_to=MOST_RANKS),
    "alpha": Limits(0, 10_000, excluded=0, offered_from=0.001, offered_to=1024),
    "conv_rank": Limits(0, 1024),
    "conv_alpha": Limits(0, 1024),
    "lokr_factor": Limits(-1, 1024, excluded=0),
    "dropout": Limits(0, 1, excluded=1, offered_to=0.99),
    "rank_dropout": Limits(0, 1, excluded=1, offered_to=0.99),
    "module_dropout": Limits(0, 1, excluded=1, offered_to=0.99),
    "text_encoder_learning_rate": Limits(0, 10),
    "learning_rate": Limits(0, 10, excluded=0, offered_from=1e-8),
    "weight_decay": Limits(0, 10),
    "warmup": Limits(0, inf, offered_to=1_000_000),
    "scheduler_cycles": Limits(1, 1000),
    "scheduler_power": Limits(0, 10, excluded=0, offered_from=0.01),
    "steps": Limits(1, 1_000_000),
    "epochs": Limits(0, 100_000),
    "batch_size": Limits(1, 512),
    "gradient_accumulation": Limits(1, 1024),
    "max_grad_norm": Limits(0, inf, offered_to=1000),
    "min_snr_gamma": Limits(0, inf, offered_to=100),
    "huber_c": Limits(0, 10, excluded=0, offered_from=1e-4),
    "noise_offset": Limits(0, 1),
    "multires_noise_iterations": Limits(0, 16),
    "multires_noise_discount": Limits(0, 1),
    "ip_noise_gamma": Limits(0, 1),
    "min_timestep": Limits(0, 999),
    "max_timestep": Limits(1, 1000),
    "logit_mean": Limits(-10, 10),
    "logit_std": Limits(0, 10, excluded=0, offered_from=0.01),
    "timestep_shift": Limits(0, 100),
    "ema_decay": Limits(0, 1, excluded=1, offered_to=0.99999),
    "seed": Limits(0, inf, offered_to=2**53 - 1),
    "save_every": Limits(0, inf, offered_to=1_000_000),
    "validation_share": Limits(0, 0.5),
    "validation_every": Limits(1, inf, offered_to=100_000),
    "validation_patience": Limits(0, inf, offered_to=10_000),
    "checkpoint_minutes": Limits(0, 1440),
    "keep_checkpoints": Limits(1, 1000),
    "sample_every": Limits(0, inf, offered_to=1_000_000),
    "sample_steps": Limits(1, 200),
    "sample_guidance": Limits(0, 30),
}
"""Of every field that is a number; the nodes' fields take theirs from here."""


@dataclass(frozen=True)
class LoRAConfig:
    """Everything that shapes a training run, apart from the data."""

    adapter: str = "lora"
    """The parametrisation; one of ADAPTERS."""
    rank: int = 16
    """Inner dimension of each adapter (network_dim in kohya's files); of OFT the largest block."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / rank; OFT has no scale."""
    conv_rank: int = 0
    """Rank for convolutions larger than 1x1 (conv_dim in kohya's files); 0 = rank."""
    conv_alpha: float = 0.0
    """Alpha for convolutions larger than 1x1; 0 = alpha."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732)."""
    lokr_factor: int = -1
    """LoKr splits each side of a weight into two factors, the smaller at most this; -1 = as near as can be."""
    targets: str = "attention"
    """Which layers get an adapter; one of TARGETS."""
    layer_rules: str = ""
    """Lines of `pattern rank=8 alpha=4 lr=0.5`, the last that fits a layer counts; rank=0 leaves the layer out."""
    dropout: float = 0.0
    """Share of the adapter's inputs set to zero in a forward pass."""
    rank_dropout: float = 0.0
    """Share of each adapter's ranks left out in a forward pass."""
    module_dropout: float = 0.0
    """Share of the adapters left out in a forward pass."""
    text_encoder_learning_rate: float = 0.0
    """Peak learning rate of adapters on the text encoders; 0 = the text encoders are not trained."""
    optimizer: str = "adamw"
    """One of OPTIMIZERS."""
    optimizer_args: str = ""
    """Further settings of the optimizer, as in `betas=0.9,0.99 eps=1e-8`."""
    learning_rate: float = 1e-4
    """Peak learning rate, reached after the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""
    scheduler: str = "cosine"
    """How the learning rate goes on after the warm-up; one of SCHEDULERS."""
    warmup: float = 0.0
    """Below 1: share of all steps; from 1 on: number of steps."""
    scheduler_cycles: int = 3
    """Cycles of cosine_with_restarts."""
    scheduler_power: float = 2.0
    """Power of polynomial."""
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
    debiased_estimation: bool = False
    """Weight the loss by 1 / sqrt(SNR) (Yu et al., arXiv:2310.08442)."""
    loss: str = "l2"
    """One of LOSSES."""
    huber_c: float = 0.1
    """Where huber and smooth_l1 turn from square to linear, in the prediction's standard deviations."""
    huber_schedule: str = "snr"
    """How that point moves with the noise; one of HUBER_SCHEDULES."""
    noise_offset: float = 0.0
    """Per-channel shift of the noise, in standard deviations; 0 = off."""
    multires_noise_iterations: int = 0
    """Layers of coarser noise put under the noise; 0 = off, 6 to 10 when used."""
    multires_noise_discount: float = 0.3
    """Strength of each coarser layer against the one before."""
    ip_noise_gamma: float = 0.0
    """Input perturbation (Ning et al., arXiv:2301.11706); 0 = off, 0.1 when used."""
    zero_terminal_snr: bool = False
    """Train as if the last timestep were pure noise (Lin et al., arXiv:2305.08891); for v-prediction models."""
    min_timestep: int = 0
    """First timestep trained, of 1000."""
    max_timestep: int = 1000
    """Timestep before which training ends, of 1000."""
    timestep_sampling: str = "auto"
    """Density of the timesteps; one of TIMESTEPS. auto: uniform for SD1.5 and SDXL, shift for flow models."""
    logit_mean: float = 0.0
    """Of logit_normal, shift and resolution_shift."""
    logit_std: float = 1.0
    """Of logit_normal, shift and resolution_shift."""
    timestep_shift: float = 0.0
    """Of shift, for flow models (discrete_flow_shift in kohya's trainer); 0 = the model's own."""
    ema_decay: float = 0.0
    """The LoRA is a moving average of its past with this decay; 0 = off, 0.99 to 0.9999 when used."""
    precision: str = "auto"
    """Arithmetic of the base model: auto = bf16 where the GPU has it, else fp32. fp16: with a scaled loss, for GPUs
    without bf16. Adapters are always fp32."""
    base_precision: str = "as loaded"
    """How the base model's weights are held; one of BASE_PRECISIONS. fp8: the blocks' linear weights in 8 bit;
    fp8 matmul: and multiplied in 8 bit."""
    save_precision: str = "fp16"
    """Number format of the saved LoRA."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    seed: int = 0
    """All random choices follow from it."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same bits each time, though some are slower."""
    fit_memory: bool = True
    """On a GPU that is too small for the recipe: checkpoint, split batches, stream weights. The gradients stay."""
    cuda_graphs: bool = True
    """On a GPU, record a step once and replay it, which gives the same results faster."""
    save_every: int = 0
    """Steps between LoRA files written on the way; 0 = off."""
    validation_share: float = 0.0
    """Share of the pictures held out to measure on, at most half; 0 = off."""
    validation_every: int = 100
    """Steps between two validations."""
    validation_patience: int = 0
    """Validations without a better loss after which training ends; 0 = never."""
    keep_best: bool = False
    """The LoRA is that of the best validation, not that of the last step."""
    on_divergence: str = "stop"
    """What happens when the loss is no number any more; one of ON_DIVERGENCE."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints, from which a run goes on after any stop; 0 = after every step."""
    keep_checkpoints: int = 2
    """The newest checkpoints that are kept."""
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
            *outside(self._numbers(), LIMITS, _DEFAULTS),
            *_one_of(self, ON_DIVERGENCE, "on_divergence"),
            *_one_of(self, ADAPTERS, "adapter"),
            *_one_of(self, TARGETS, "targets"),
            *_one_of(self, LOSSES, "loss"),
            *_one_of(self, HUBER_SCHEDULES, "huber_schedule"),
            *_one_of(self, TIMESTEPS, "timestep_sampling"),
            *_one_of(self, OPTIMIZERS, "optimizer"),
            *_one_of(self, SCHEDULERS, "scheduler"),
            *_one_of(self, PRECISIONS, "precision"),
            *_one_of(self, BASE_PRECISIONS, "base_precision"),
            *_one_of(self, SAVE_PRECISIONS, "save_precision"),
        ]
        if self.adapter != "lokr" and is_finite(self.rank) and MOST_RANKS < self.rank:
            problems.append(f"rank is {self.rank}; it must be at most {MOST_RANKS}, except for lokr; 16 is usual.")
        try:
            parse_layer_rules(self.layer_rules)
        except InputError as error:
            problems += error.problems
        if all(is_finite(getattr(self, name)) for name in LIMITS):
            problems += self._contradictions()
        raise_if_any("LoRA Config", problems)
        keep_as_whole(self, (name for name in self._numbers() if isinstance(_DEFAULTS[name], int)))

    def _numbers(self) -> dict[str, Any]:
        """The fields with limits; without steps, where epochs count."""
        return {name: getattr(self, name) for name in LIMITS if name != "steps" or self.epochs == 0}

    def _contradictions(self) -> list[str]:
        """What does not go together, all numbers being numbers."""
        problems = []
        if (self.precision, self.base_precision) == ("fp16", "fp8 matmul"):
            problems.append(
                "precision is fp16 and base_precision is 'fp8 matmul', whose products give bf16: "
                "set precision to bf16, or base_precision to fp8."
            )
        if self.min_timestep >= self.max_timestep:
            problems.append(
                f"min_timestep is {self.min_timestep} and max_timestep is {self.max_timestep}; "
                "the first must be below the second; 0 and 1000 train all of them."
            )
        if not self.validation_share and (self.keep_best or self.validation_patience):
            problems.append(
                "keep_best or validation_patience is set, but validation_share is 0: nothing is measured. "
                "Set validation_share to 0.1 or so, or the others to off."
            )
        if self.min_snr_gamma and self.debiased_estimation:
            problems.append("min_snr_gamma and debiased_estimation are both on: both weight by noise, choose one.")
        if self.optimizer == "prodigy" and self.learning_rate < LOWEST_PRODIGY_RATE:
            problems.append(
                f"learning_rate is {self.learning_rate:g} with prodigy, which finds the rate itself and multiplies it "
                "by this: nothing would be learned. Set learning_rate to 1."
            )
        if self.ema_decay and self.optimizer == "schedule_free":
            problems.append("ema_decay is on with schedule_free, which averages by itself: set ema_decay to 0.")
        if self.epochs == 0 and self.warmup >= 1 and self.warmup >= self.steps >= 1:
            problems.append(
                f"warmup is {self.warmup:g} steps of {self.steps}: it must end before the run does. "
                "Lower warmup (values below 1 are a share of the run) or raise steps."
            )
        if self.sample_every > 0 and not self.sample_prompts:
            problems.append(
                f"sample_every is {self.sample_every}, but sample_prompts is empty: "
                "write one prompt a line, or set sample_every to 0."
            )
        return problems

    def warmup_steps(self, total_steps: int) -> int:
        """The warm-up in optimizer steps."""
        return int(self.warmup if self.warmup >= 1 else round(self.warmup * total_steps))


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


_DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(LoRAConfig)}


def _one_of(config: LoRAConfig, allowed: tuple[str, ...], name: str) -> list[str]:
    value = getattr(config, name)
    return [] if value in allowed else [f"{name} is {value!r}; choose one of: {', '.join(allowed)}."]
