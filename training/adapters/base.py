"""The base class of all parametrisations, their dropout, and functions on the layers that they adapt."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .products import PLAIN, LayerProducts

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Dropped:
    """The dropout of one adapter in one forward pass and its backward pass."""

    is_whole: bool = False
    """the whole adapter is left out"""
    inputs: float = 0.0
    """share of the inputs set to zero"""
    seed: int = 0
    """of the choice of the inputs"""
    of_all: Tensor | None = None
    """(all ranks,) factors on the ranks of several adapters, side by side; None: no rank dropout"""
    place: tuple[int, int | None] = (0, None)
    """where those of the adapter begin and end"""

    @property
    def ranks(self) -> Tensor | None:
        """(rank,) factor on each rank: 0 drops it; None: no rank dropout."""
        return None if self.of_all is None else self.of_all[slice(*self.place)]

    @property
    def only_ranks(self) -> bool:
        """Whether nothing but ranks is dropped."""
        return not self.is_whole and not self.inputs


NOTHING = Dropped()


@dataclass(frozen=True)
class AdapterNames:
    """Names of a parametrisation in files and in other trainers' recipes."""

    title: str
    """as people write it"""
    network_module: str = "lycoris.kohya"
    """in our files' ss_network_module"""
    lycoris: tuple[str, ...] = ()
    """values of LyCORIS' `algo` that mean it; the first is written to our files"""
    lycoris_arguments: Mapping[str, Any] = field(default_factory=dict)
    """further arguments of LyCORIS that our files name"""
    kohya: tuple[str, ...] = ()
    """values of `network_module` in sd-scripts that mean it"""
    ai_toolkit: tuple[str, ...] = ()
    """values of `network.type` in ai-toolkit that mean it"""


class Adapter(nn.Module, ABC):
    """The float32 parameters trained beside one frozen layer; each subclass is one row of KINDS.

    Args:
        rank: inner dimension.
        alpha: as in a file: scale = alpha / rank.
    """

    kind: ClassVar[str]
    """its key in KINDS, and the recipe's `adapter`"""
    names: ClassVar[AdapterNames]
    notes: ClassVar[tuple[str, ...]] = ()
    """sentences that every run with it reports"""
    has_rank_dropout: ClassVar[bool] = False
    is_off_without_ranks: ClassVar[bool] = False
    """Dropping all its ranks drops it whole."""
    has_input_dropout: ClassVar[bool] = True
    has_rank_limit: ClassVar[bool] = True
    """False: a rank above every layer's has a meaning of its own"""
    has_scale: ClassVar[bool] = True
    """False: alpha has no effect"""
    takes_factor: ClassVar[bool] = False
    """whether `new` uses its factor, the recipe's lokr_factor"""
    needs_weight: ClassVar[bool] = False
    """whether `difference` depends on the weight: such adapters cannot be summed"""

    def __init__(self, rank: int, alpha: float):
        super().__init__()
        self.rank = rank
        self.alpha = alpha
        self.copies: dict[str, Tensor] = {}
        """the parameters in the base model's number format, by name, where `FlatParameters` maintains them"""
        self.dropped = NOTHING
        """unchanged until the next draw or clear, so that recomputed activations have the same dropout"""

    @property
    def scale(self) -> float:
        """Factor on the adapter's output (Hu et al., arXiv:2106.09685)."""
        return self.alpha / self.rank

    @classmethod
    @abstractmethod
    def new(cls, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, factor: int = -1) -> "Adapter":
        """A fresh adapter on the CPU with which the layer's output is unchanged.

        Args:
            generator: on the CPU; draws all its numbers.
            factor: see `takes_factor`.
        """

    def forward(self, layer: nn.Module, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The layer's output for its input x with the adapter on, in the number format of `base`.

        Args:
            layer: the linear layer or convolution; read only.
            base: the layer's forward without the adapter.
        """
        return base(x) if self.dropped.is_whole else self.adapted(layer, base, x)

    def fused(self, layer: nn.Module, x: Tensor, products: LayerProducts = PLAIN) -> Tensor | None:
        """The output of `forward` in fewer passes over the activations; None where that cannot be done.

        The backward pass adds the gradients to the parameters' `.grad`, which must exist.

        Args:
            products: multiply by the layer's weight.
        """
        return None

    @abstractmethod
    def adapted(self, layer: nn.Module, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`forward` with the adapter not dropped as a whole."""

    def merged(self, weight: Tensor) -> Tensor:
        """The weight with the adapter merged in, float32, as ComfyUI's loader computes it."""
        return weight.float() + self.difference(weight)

    @abstractmethod
    def difference(self, weight: Tensor | None = None) -> Tensor:
        """merged - weight, in the shape of the weight; without a weight only where `needs_weight` is False."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its entries in a file: suffix -> float32 tensor on the CPU."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> "Adapter | None":
        """The inverse of `tensors` for float32 tensors; None where they are of another parametrisation."""

    def clear_dropout(self) -> None:
        """Turns dropout off, as samples and validation need it."""
        self.dropped = NOTHING

    def with_dropout(self, x: Tensor) -> Tensor:
        """x with the drawn share of its entries set to zero and the others scaled up to keep the mean."""
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
        """The adapter's addend to the layer's output for the input x, in the number format of x."""


def is_linear(layer: nn.Module) -> bool:
    """Whether it is a linear layer, ComfyUI's quantised one, which is no nn.Linear, included."""
    return isinstance(layer, nn.Linear) or (hasattr(layer, "in_features") and hasattr(layer, "out_features"))


def layer_shape(layer: Any) -> tuple[int, ...]:
    """(out, in) of a linear layer, (out, in, *kernel) of a convolution: the weight's shape before quantisation."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.out_channels, layer.in_channels, *layer.kernel_size
    return layer.out_features, layer.in_features


def dense_weight(layer: Any) -> Tensor:
    """The layer's weight as an ordinary float32 tensor, dequantised where it is quantised."""
    return dense(layer.weight).detach().float()


def dense(tensor: Tensor) -> Tensor:
    """A weight or bias, dequantised where it is of a class of its own."""
    return tensor if type(tensor) in (Tensor, nn.Parameter) else tensor.dequantize()


def apply_weight(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """The layer's output for x with another weight and no bias, at its stride, padding and dilation."""
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
    """The largest divisor of a number up to the limit and up to the number's square root."""
    return max(d for d in range(1, number + 1) if d * d <= number and number % d == 0 and d <= max(1, limit))
