"""The settings of the run: number formats, memory, validation, checkpoints, samples, and the seed."""

from dataclasses import dataclass
from math import inf

from ..basics.numbers import Limits
from ..basics.settings import Settings, choice, number

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
BASE_PRECISIONS = ("as loaded", "fp8", "fp8 matmul")
SAVE_PRECISIONS = ("fp16", "bf16", "fp32")
ON_DIVERGENCE = ("stop", "step back")
"""step back: the run goes on from the last checkpoint, with half the learning rate"""


@dataclass(frozen=True)
class RunConfig(Settings):
    """How a run computes, validates, saves and draws samples."""

    subject = "LoRA Config"

    precision: str = choice("auto", PRECISIONS)
    """Number format that the base model computes in: auto = bf16 where the GPU has it, else fp32. fp16: with a scaled
    loss, for GPUs without bf16. Adapters are always fp32."""
    base_precision: str = choice("as loaded", BASE_PRECISIONS)
    """Number format that the base model's weights are stored in. fp8: the blocks' linear weights in 8 bit; fp8 matmul:
    multiplied in 8 bit too."""
    save_precision: str = choice("fp16", SAVE_PRECISIONS)
    """Number format of the saved LoRA."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third slower, far less memory."""
    seed: int = number(0, Limits(0, inf, offered_to=2**53 - 1))
    """All random choices of a run depend on it."""
    deterministic: bool = False
    """On a GPU, use only kernels whose results are the same bit for bit; some are slower."""
    fit_memory: bool = True
    """On a GPU that is too small for the recipe: checkpoint, split batches, stream weights. Gradients are the same."""
    cuda_graphs: bool = True
    """On a GPU, capture a step as CUDA graphs and replay them: the same results, faster."""
    save_every: int = number(0, Limits(0, inf, offered_to=1_000_000))
    """Steps between LoRA files written during the run; 0 = off."""
    validation_share: float = number(0.0, Limits(0, 0.5))
    """Share of the pictures held out for validation, at most half; 0 = off."""
    validation_every: int = number(100, Limits(1, inf, offered_to=100_000))
    """Steps between two validations."""
    validation_patience: int = number(0, Limits(0, inf, offered_to=10_000))
    """Validations without a better loss after which training ends; 0 = never."""
    keep_best: bool = False
    """The LoRA is that of the validation with the lowest loss, not that of the last step."""
    on_divergence: str = choice("stop", ON_DIVERGENCE)
    """Reaction to a loss that is not finite, or far too large."""
    checkpoint_minutes: float = number(5.0, Limits(0, 1440))
    """Minutes between two checkpoints, from which a stopped run can be resumed; 0 = after every step."""
    keep_checkpoints: int = number(2, Limits(1, 1000))
    """Number of the newest checkpoints that are kept."""
    sample_every: int = number(0, Limits(0, inf, offered_to=1_000_000))
    """Steps between sample pictures; 0 = off."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample pictures: one picture each."""
    sample_steps: int = number(20, Limits(1, 200))
    """Sampler steps of a sample picture."""
    sample_guidance: float = number(7.0, Limits(0, 30))
    """Classifier-free guidance of a sample picture; 1 = off."""

    def more_problems(self) -> list[str]:
        if not self.has_finite_numbers:
            return []
        problems = []
        if (self.precision, self.base_precision) == ("fp16", "fp8 matmul"):
            problems.append(
                "precision is fp16 and base_precision is 'fp8 matmul', whose products give bf16: "
                "set precision to bf16, or base_precision to fp8."
            )
        if not self.validation_share and (self.keep_best or self.validation_patience):
            problems.append(
                "keep_best or validation_patience is set, but validation_share is 0: nothing is measured. "
                "Set validation_share to 0.1 or so, or the others to off."
            )
        if self.sample_every > 0 and not self.sample_prompts:
            problems.append(
                f"sample_every is {self.sample_every}, but sample_prompts is empty: "
                "write one prompt a line, or set sample_every to 0."
            )
        return problems
