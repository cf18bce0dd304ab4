"""What all parametrisations share: the contract, dropout, and a look at the layer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Dropped:
    """What one forward pass and its backward pass leave out of an adapter."""

    is_whole: bool = False
    """the layer goes without its adapter"""
    inputs: float = 0.0
    """share of the inputs set to zero"""
    seed: int = 0
    """decides which inputs"""
    ranks: Tensor | None = None
    """(rank,) what each rank is multiplied by: 0 where it is left out; None: all stay"""

    @property
    def is_nothing(self) -> bool:
        """Whether all stays."""
        return not self.is_whole and not self.inputs and self.ranks is None


NOTHING = Dropped()


class Adapter(nn.Module, ABC):
    """The float32 parameters trained beside one frozen layer.

    Args:
        rank: inner dimension.
        alpha: as a file says it, so scale = alpha / rank.
    """

    kind: ClassVar[str]
    """one of config.ADAPTERS"""
    has_rank_dropout: ClassVar[bool] = False
    has_input_dropout: ClassVar[bool] = True

    def __init__(self, rank: int, alpha: float):
        super().__init__()
        self.rank = rank
        self.alpha = alpha
        self.copies: dict[str, Tensor] = {}
        """parameters in the base model's arithmetic, by name, where someone keeps them up to date"""
        self.dropped = NOTHING
        """stays until it is drawn anew or cleared, so that activations computed again see the same"""

    @property
    def scale(self) -> float:
        """What the adapter's part is multiplied by (Hu et al., arXiv:2106.09685)."""
        return self.alpha / self.rank

    def forward(self, layer: nn.Module, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The layer's output for its input x with the adapter on, in base's number format.

        Args:
            layer: the linear layer or convolution; read only.
            base: the layer's own forward.
        """
        return base(x) if self.dropped.is_whole else self.adapted(layer, base, x)

    def fused(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        """What `forward` gives, in fewer passes over the activations; None where there is no such way.

        The gradients go into the parameters' `.grad`, which must be there.
        """
        return None

    @abstractmethod
    def adapted(self, layer: nn.Module, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`forward` of an adapter that is not left out."""

    def merged(self, weight: Tensor) -> Tensor:
        """The weight with the adapter on, float32, as the host's loader computes it."""
        return weight.float() + self.difference(weight)

    @abstractmethod
    def difference(self, weight: Tensor | None = None) -> Tensor:
        """merged - weight, in weight's shape. LoRA, LoHa and LoKr need no weight but for its shape."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a file holds: suffix -> float32 tensor on the CPU."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> "Adapter | None":
        """The inverse of `tensors` for float32 tensors; None where they are of another form."""

    def draw_dropout(
        self,
        generator: torch.Generator,
        dropout: float = 0.0,
        rank_dropout: float = 0.0,
        is_left_out: bool = False,
    ) -> None:
        """Draws what is dropped until the next draw.

        Args:
            generator: on the CPU.
            dropout: share of the inputs set to zero.
            rank_dropout: share of the ranks set to zero.
            is_left_out: whether the layer goes without its adapter.
        """
        seed, ranks = int(torch.randint(2**62, (), generator=generator)), None
        if rank_dropout:
            keep = torch.rand(self.rank, generator=generator) >= rank_dropout
            ranks = (keep / (1 - rank_dropout)).to(next(self.parameters()).device)
        self.dropped = Dropped(is_left_out, dropout, seed, ranks)

    def clear_dropout(self) -> None:
        """Nothing is dropped: for samples and validation."""
        self.dropped = NOTHING

    def with_dropout(self, x: Tensor) -> Tensor:
        """x with the drawn share of its entries at zero and the others scaled to keep the mean."""
        share = self.dropped.inputs
        if not share:
            return x
        generator = torch.Generator(x.device).manual_seed(self.dropped.seed)
        return x * torch.empty_like(x).bernoulli_(1 - share, generator=generator) / (1 - share)


class AddedAdapter(Adapter):
    """An adapter that adds to its layer's output and leaves its input as it is."""

    def adapted(self, layer: nn.Module, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        output = base(x)
        return output + self.added(layer, self.with_dropout(x)).to(output.dtype)

    @abstractmethod
    def added(self, layer: nn.Module, x: Tensor) -> Tensor:
        """What the adapter adds to the layer's output for its input x, in the arithmetic of x."""


def is_linear(layer: nn.Module) -> bool:
    """Also the host's quantised linear layer, which is no nn.Linear."""
    return isinstance(layer, nn.Linear) or (hasattr(layer, "in_features") and hasattr(layer, "out_features"))


def layer_shape(layer: Any) -> tuple[int, ...]:
    """(out, in) of a linear layer, (out, in, *kernel) of a convolution: the weight's shape before quantisation."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.out_channels, layer.in_channels, *layer.kernel_size
    return layer.out_features, layer.in_features


def dense_weight(layer: Any) -> Tensor:
    """The layer's weight as a plain float32 tensor, out of whatever format it is kept in."""
    weight = layer.weight.detach()
    if type(weight) is not Tensor and hasattr(weight, "dequantize"):
        weight = weight.dequantize()
    return weight.float()


def apply_weight(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """What the layer would give for x with another weight and no bias: its stride, padding and dilation are kept."""
    if isinstance(layer, CONVOLUTIONS):
        return layer._conv_forward(x, weight, None)
    return F.linear(x, weight)


def mix_channels(x: Tensor, weight: Tensor) -> Tensor:
    """A linear layer over the channels: (..., in) -> (..., out) for a 2-D weight, else a convolution of size 1."""
    if weight.dim() == 2:
        return F.linear(x, weight)
    return {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.dim()](x, weight)


def saved(tensor: Tensor) -> Tensor:
    """A float32 copy on the CPU."""
    return tensor.detach().to("cpu", torch.float32, copy=True)


def largest_divisor(number: int, limit: float) -> int:
    """The largest divisor of a number not above the limit nor above the number's square root."""
    return max(d for d in range(1, number + 1) if d * d <= number and number % d == 0 and d <= max(1, limit))
