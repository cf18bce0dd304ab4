"""LoHa: the Hadamard product of two low-rank products (Hyeon-Woo et al., FedPara, arXiv:2108.06098)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .base import Adapter, AdapterNames, AddedAdapter, layer_shape, saved
from .lora import low_rank

NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class LoHa(AddedAdapter):
    """W + scale * (w1_a @ w1_b) * (w2_a @ w2_b), a difference of rank up to rank^2.

    Args:
        w1_a, w2_a: (out, rank).
        w1_b, w2_b: (rank, in * prod(kernel)).
        alpha: scale = alpha / rank.
    """

    kind = "loha"
    names = AdapterNames(title="LoHa", lycoris=("loha",), kohya=("networks.loha",))
    has_rank_dropout = True
    is_off_without_ranks = True

    def __init__(self, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor, alpha: float):
        super().__init__(w1_b.shape[0], alpha)
        self.w1_a = nn.Parameter(w1_a)
        self.w1_b = nn.Parameter(w1_b)
        self.w2_a = nn.Parameter(w2_a)
        self.w2_b = nn.Parameter(w2_b)

    @classmethod
    def new(cls, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, factor: int = -1) -> Adapter:
        """Fresh factors as LyCORIS draws them: normal, of deviation 0.1 for w1_a and 1 for w1_b and w2_b; w2_a zero."""
        out_features, *columns = layer_shape(layer)
        inner = math.prod(columns)
        w1_a = 0.1 * torch.randn(out_features, rank, generator=generator)
        w1_b, w2_b = (torch.randn(rank, inner, generator=generator) for _ in range(2))
        return cls(w1_a, w1_b, torch.zeros(out_features, rank), w2_b, alpha)

    def added(self, layer: nn.Module, x: Tensor) -> Tensor:
        # The Hadamard product of two products of rank r is one product of rank r^2: no weight is made.
        w1_a = self.w1_a if self.dropped.ranks is None else self.w1_a * self.dropped.ranks
        up = self.scale * (w1_a.unsqueeze(2) * self.w2_a.unsqueeze(1)).flatten(1)
        down = (self.w1_b.unsqueeze(1) * self.w2_b.unsqueeze(0)).flatten(0, 1)
        return low_rank(layer, x, down, up)

    def difference(self, weight: Tensor | None = None) -> Tensor:
        product = self.scale * (self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)
        return product if weight is None else product.reshape(weight.shape)

    def tensors(self) -> dict[str, Tensor]:
        factors = (self.w1_a, self.w1_b, self.w2_a, self.w2_b)
        named = {name: saved(factor) for name, factor in zip(NAMES, factors, strict=True)}
        return named | {"alpha": torch.tensor(float(self.alpha))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> "LoHa | None":
        if set(tensors) != set(NAMES):
            return None
        w1_a, w1_b, w2_a, w2_b = factors = [tensors[name] for name in NAMES]
        if any(factor.dim() != 2 for factor in factors) or w1_a.shape[0] != w2_a.shape[0]:
            return None
        if w1_a.shape[1] != w1_b.shape[0] or w2_a.shape[1] != w2_b.shape[0] or w1_b.shape[1] != w2_b.shape[1]:
            return None
        rank = w1_b.shape[0]
        return cls(w1_a, w1_b, w2_a, w2_b, rank if alpha is None else alpha)
