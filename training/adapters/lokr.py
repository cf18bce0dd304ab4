"""LoKr: a Kronecker product (Edalati et al., KronA, arXiv:2212.10650; Yeh et al., LyCORIS, arXiv:2309.14859)."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Adapter, AdapterNames, AddedAdapter, apply_weight, is_linear, largest_divisor, layer_shape, saved
from .lora import kaiming_uniform


class LoKr(AddedAdapter):
    """W + scale * kron(w1, w2), where each factor may itself be a product.

    Args:
        factors: w1 (out_l, in_m) or w1_a @ w1_b; w2 (out_k, in_n, *kernel) or w2_a @ w2_b, 2-D, with
            out = out_l * out_k and in = in_m * in_n.
        alpha: scale = alpha / rank where a factor is a product, else 1.
    """

    kind = "lokr"
    names = AdapterNames(title="LoKr", lycoris=("lokr",), kohya=("networks.lokr",), ai_toolkit=("lokr",))
    has_rank_limit = False
    takes_factor = True

    def __init__(self, factors: Mapping[str, Tensor], alpha: float):
        products = [factors[name].shape[0] for name in ("w2_b", "w1_b") if name in factors]
        super().__init__(products[0] if products else max(1, round(alpha)), alpha)
        self.factors = nn.ParameterDict({name: nn.Parameter(factor) for name, factor in factors.items()})
        self.has_product = bool(products)

    @classmethod
    def new(cls, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, factor: int = -1) -> Adapter:
        """Fresh factors: the first drawn, the second zero.

        Args:
            rank: of the second factor; where it would save nothing, and for every convolution (for which ComfyUI reads
                whole factors alone), that factor is whole and alpha has no effect.
            factor: largest size of the smaller side of each pair; -1 = as near to the larger side as possible.
        """
        out_features, in_features, *kernel = layer_shape(layer)
        out_l, in_m = (largest_divisor(n, n if factor < 0 else factor) for n in (out_features, in_features))
        out_k, in_n = out_features // out_l, in_features // in_m
        factors = {"w1": kaiming_uniform((out_l, in_m), generator)}
        if kernel or rank >= max(out_k, in_n) / 2:
            return cls({**factors, "w2": torch.zeros(out_k, in_n, *kernel)}, float(rank))
        w2_b = kaiming_uniform((rank, in_n), generator)
        return cls({**factors, "w2_a": torch.zeros(out_k, rank), "w2_b": w2_b}, alpha)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.has_product else 1.0

    def added(self, layer: nn.Module, x: Tensor) -> Tensor:
        w1 = self._factor("w1").to(x.dtype) * self.scale
        out_l, in_m = w1.shape
        if is_linear(layer):
            groups = x.unflatten(-1, (in_m, -1))
            if "w2" in self.factors:
                hidden = F.linear(groups, self.factors["w2"].flatten(1).to(x.dtype))
            else:
                inner = F.linear(groups, self.factors["w2_b"].to(x.dtype))
                hidden = F.linear(inner, self.factors["w2_a"].to(x.dtype))
            return F.linear(hidden.transpose(-1, -2), w1).transpose(-1, -2).flatten(-2)
        out_features, in_features, *kernel = layer_shape(layer)
        w2 = self._factor("w2").reshape(out_features // out_l, in_features // in_m, *kernel)
        hidden = apply_weight(layer, x.unflatten(1, (in_m, -1)).flatten(0, 1), w2.to(x.dtype))
        return torch.einsum("lm,bm...->bl...", w1, hidden.unflatten(0, (-1, in_m))).flatten(1, 2)

    def difference(self, weight: Tensor | None = None) -> Tensor:
        w1, w2 = self._factor("w1"), self._factor("w2")
        product = self.scale * torch.kron(w1.reshape(*w1.shape, *(1 for _ in w2.shape[2:])), w2)
        return product if weight is None else product.reshape(weight.shape)

    def tensors(self) -> dict[str, Tensor]:
        named = {f"lokr_{name}": saved(factor) for name, factor in self.factors.items()}
        w2 = named.get("lokr_w2")
        if w2 is not None and w2.dim() in (3, 5) and "lokr_w1" in named:
            # ComfyUI aligns the dimensions of the factors for 2-D convolutions only.
            named["lokr_w1"] = named["lokr_w1"].reshape(*named["lokr_w1"].shape, *(1 for _ in w2.shape[2:]))
        return named | {"alpha": torch.tensor(float(self.alpha))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> "LoKr | None":
        factors = {name.removeprefix("lokr_"): tensor for name, tensor in tensors.items()}
        forms = [(first, second) for first in (("w1",), ("w1_a", "w1_b")) for second in (("w2",), ("w2_a", "w2_b"))]
        if not any(set(factors) == {*first, *second} for first, second in forms):
            return None
        if "w1" in factors and factors["w1"].numel() != factors["w1"].shape[:2].numel():
            return None
        if "w1" in factors:
            factors["w1"] = factors["w1"].reshape(factors["w1"].shape[:2])
        if any(factor.dim() != 2 for name, factor in factors.items() if name != "w2"):
            return None
        if any(f"{w}_a" in factors and factors[f"{w}_a"].shape[1] != factors[f"{w}_b"].shape[0] for w in ("w1", "w2")):
            return None
        rank = next((factors[name].shape[0] for name in ("w2_b", "w1_b") if name in factors), None)
        if rank is None:  # whole factors: alpha scales nothing, and any number may stand there
            if alpha is None or not 1 <= alpha < math.inf:
                alpha = float(max(factors["w2"].shape[:2]))
            return cls(factors, alpha)
        return cls(factors, rank if alpha is None else alpha)

    def _factor(self, name: str) -> Tensor:
        if name in self.factors:
            return self.factors[name]
        return self.factors[f"{name}_a"] @ self.factors[f"{name}_b"]
