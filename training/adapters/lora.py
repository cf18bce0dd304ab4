"""LoRA: low-rank adaptation (Hu et al., arXiv:2106.09685)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .base import Adapter, AdapterNames, AddedAdapter, apply_weight, is_linear, layer_shape, mix_channels, saved
from .fused_linear import LowRankLinear, Trained
from .products import PLAIN, LayerProducts

PAIRS = (
    ("lora_up.weight", "lora_down.weight"),
    ("lora_B.weight", "lora_A.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"),
    ("lora_B", "lora_A"),
    ("lora.up.weight", "lora.down.weight"),
    ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
)
"""Names of (up, down) in the files of kohya, peft, diffusers and others."""


class LoRA(AddedAdapter):
    """W + scale * up @ down.

    Args:
        down: (rank, in, *kernel); for a convolution also (rank, in * prod(kernel)).
        up: (out, rank, *1s); for a convolution also (out, rank).
        alpha: scale = alpha / rank.
    """

    kind = "lora"
    names = AdapterNames(
        title="LoRA",
        network_module="networks.lora",
        lycoris=("locon", "lora"),
        kohya=(
            *("networks.lora", "networks.dylora", "networks.lora_fa", "networks.lora_flux", "networks.lora_sd3"),
            *("networks.lora_lumina", "networks.lora_anima", "networks.lora_hunyuan_image"),
        ),
        ai_toolkit=("lora", "locon"),
    )
    has_rank_dropout = True
    is_off_without_ranks = True

    def __init__(self, down: Tensor, up: Tensor, alpha: float):
        super().__init__(down.shape[0], alpha)
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)

    @classmethod
    def new(cls, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, factor: int = -1) -> Adapter:
        return LoRA(*init_lora(layer_shape(layer), rank, generator), alpha)

    def added(self, layer: nn.Module, x: Tensor) -> Tensor:
        up = self.up.to(x.dtype) * self.scale
        if self.dropped.ranks is not None:
            up = up.flatten(1) * self.dropped.ranks.to(x.dtype)
        return low_rank(layer, x, self.down, up)

    def can_fuse(self, layer: Any, x: Tensor, products: LayerProducts = PLAIN) -> bool:
        """Whether `fused` can compute the layer: in training, all in the format of x, no dropout but of ranks."""
        weight, down = layer.weight, self.copies.get("down", self.down)
        is_alike = products.is_quantised(weight)
        is_alike = is_alike or (type(weight) in (Tensor, nn.Parameter) and weight.dtype == x.dtype)
        is_alike = is_alike and x.dtype == down.dtype and (layer.bias is None or layer.bias.dtype == x.dtype)
        has_gradients = self.down.grad is not None and self.up.grad is not None
        is_here = x.device == weight.device
        return is_alike and is_here and has_gradients and self.dropped.only_ranks and torch.is_grad_enabled()

    def fused(self, layer: Any, x: Tensor, products: LayerProducts = PLAIN) -> Tensor | None:
        if not self.can_fuse(layer, x, products):
            return None
        weight = layer.weight
        if is_linear(layer) and x.dim() > 1:
            return self._fused_rows(x, weight, layer.bias, products)
        if products.is_quantised(weight) or not _mixes_channels(layer) or x.dim() != 4:
            return None
        if x.is_cuda:  # models change to channels first just before some of these layers
            x = x.contiguous(memory_format=torch.channels_last)
        if not x.is_contiguous(memory_format=torch.channels_last):
            return None
        rows = self._fused_rows(x.permute(0, 2, 3, 1), weight.flatten(1), layer.bias, products)
        return rows.permute(0, 3, 1, 2)

    def _fused_rows(self, x: Tensor, weight: Tensor, bias: Tensor | None, products: LayerProducts) -> Tensor:
        down = self.copies.get("down", self.down).detach().flatten(1)
        up = self.copies.get("up", self.up).detach().flatten(1)
        # The view is made outside: autograd forbids in-place writes to a Function's views, and models write into it.
        trained = Trained(self.down, self.up, self.scale, self.dropped.ranks)
        rows = LowRankLinear.apply(x.flatten(0, -2), weight, bias, down, up, self.down, trained, products)
        return rows.view(*x.shape[:-1], -1)  # pyright: ignore[reportAttributeAccessIssue]

    def difference(self, weight: Tensor | None = None) -> Tensor:
        product = self.scale * (self.up.flatten(1) @ self.down.flatten(1))
        return product.reshape(weight.shape if weight is not None else (self.up.shape[0], *self.down.shape[1:]))

    def tensors(self) -> dict[str, Tensor]:
        return {
            "lora_up.weight": saved(self.up),
            "lora_down.weight": saved(self.down),
            "alpha": torch.tensor(float(self.alpha)),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> "LoRA | None":
        factors = read_factors(tensors)
        if factors is None or len(tensors) > 2:
            return None
        return cls(*factors, factors[0].shape[0] if alpha is None else alpha)


def read_factors(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """down and up of one layer in a file, under any of PAIRS; None where they are missing or do not fit."""
    for up_name, down_name in PAIRS:
        if up_name in tensors and down_name in tensors:
            up, down = tensors[up_name], tensors[down_name]
            fits = up.dim() >= 2 and down.dim() >= 2 and up.flatten(1).shape[1] == down.shape[0]
            return (down, up) if fits else None
    return None


def init_lora(
    weight_shape: torch.Size | tuple[int, ...], rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Fresh factors for a weight: down drawn as in kohya's trainer (kaiming uniform, a = sqrt 5), up zero.

    Args:
        weight_shape: (out, in) of a linear layer, (out, in, *kernel) of a convolution.
        rank: inner dimension.

    Returns:
        down (rank, in, *kernel), up (out, rank, *1s), float32 on the CPU.
    """
    out_features, in_features, *kernel = weight_shape
    down = kaiming_uniform((rank, in_features, *kernel), generator)
    return down, torch.zeros(out_features, rank, *(1 for _ in kernel))


def kaiming_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform within 1 / sqrt(fan in): He et al. (arXiv:1502.01852) with a = sqrt 5, as torch draws layers."""
    bound = 1.0 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _mixes_channels(layer: Any) -> bool:
    """Whether the layer is a 2-D convolution that acts as a linear layer over the channels of each pixel."""
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        return False
    return layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0)


def low_rank(layer: nn.Module, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """up(down(x)) in the number format of x; down has the layer's stride, padding and dilation, up mixes channels.

    Args:
        down: (rank, in, *kernel) or (rank, in * prod(kernel)).
        up: (out, rank, *1s) or (out, rank), scaled already.
    """
    out_features, *inner = layer_shape(layer)
    rank = down.shape[0]
    hidden = apply_weight(layer, x, down.to(x.dtype).reshape(rank, *inner))
    return mix_channels(hidden, up.to(x.dtype).reshape(out_features, rank, *(1 for _ in inner[1:])))
