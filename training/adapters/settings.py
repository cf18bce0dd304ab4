"""The settings of the adapters: their kind and size, the layers that get one, and dropout."""

from dataclasses import dataclass
from math import inf

from ..basics.errors import InputError
from ..basics.numbers import Limits, is_finite
from ..basics.settings import Settings, choice, number
from . import KINDS
from .layer_rules import parse_layer_rules

BLOCK_TARGETS = ("SDXL style blocks", "SDXL content blocks")
"""Choices of `targets` that name one block of a model."""
TARGETS = (
    "attention",
    "attention and feed-forward",
    "attention, feed-forward and convolutions",
    "all linear and convolution",
    *BLOCK_TARGETS,
)
LARGEST_RANK = 1024
"""For kinds with a rank limit; a larger one with LoKr stands for whole factors."""
SHARE_BELOW_ONE = Limits(0, 1, excluded=1, offered_to=0.99)


@dataclass(frozen=True)
class AdapterConfig(Settings):
    """The trained parameters beside the base model's frozen layers."""

    subject = "LoRA Config"

    kind: str = choice("lora", KINDS, name="adapter")
    """The parametrisation; a key of KINDS."""
    rank: int = number(16, Limits(1, inf, offered_to=LARGEST_RANK))
    """Inner dimension of each adapter (network_dim in kohya's files); for OFT the largest block."""
    alpha: float = number(16.0, Limits(0, 10_000, excluded=0, offered_from=0.001, offered_to=1024))
    """The adapter's output is scaled by alpha / rank; OFT has no scale."""
    conv_rank: int = number(0, Limits(0, 1024))
    """Rank for convolutions larger than 1x1 (conv_dim in kohya's files); 0 = rank."""
    conv_alpha: float = number(0.0, Limits(0, 1024))
    """Alpha for convolutions larger than 1x1; 0 = alpha."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732)."""
    lokr_factor: int = number(-1, Limits(-1, 1024, excluded=0))
    """LoKr splits each side of a weight into two factors, the smaller at most this; -1 = as near to each other as
    the side allows."""
    targets: str = choice("attention", TARGETS)
    """Which layers get an adapter."""
    layer_rules: str = ""
    """Lines of `pattern rank=8 alpha=4 lr=0.5`; the last one that fits a layer counts; rank=0 leaves the layer out."""
    dropout: float = number(0.0, SHARE_BELOW_ONE)
    """Share of the adapter's inputs set to zero in a forward pass."""
    rank_dropout: float = number(0.0, SHARE_BELOW_ONE)
    """Share of each adapter's ranks left out in a forward pass."""
    module_dropout: float = number(0.0, SHARE_BELOW_ONE)
    """Share of the adapters left out in a forward pass."""

    def more_problems(self) -> list[str]:
        problems = []
        has_limit = self.kind not in tuple(KINDS) or KINDS[self.kind].has_rank_limit
        if has_limit and is_finite(self.rank) and self.rank > LARGEST_RANK:
            exempt = " and ".join(name for name, kind in KINDS.items() if not kind.has_rank_limit)
            problems.append(
                f"rank is {self.rank}; it must be at most {LARGEST_RANK}, except for {exempt}; 16 is usual."
            )
        try:
            parse_layer_rules(self.layer_rules)
        except InputError as error:
            problems += error.problems
        return problems

    @property
    def has_dropout(self) -> bool:
        """Whether any kind of dropout is on."""
        return bool(self.dropout or self.rank_dropout or self.module_dropout)
