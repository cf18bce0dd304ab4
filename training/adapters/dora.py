"""DoRA: weight-decomposed low-rank adaptation (Liu et al., arXiv:2402.09353)."""

import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .base import Adapter, AdapterNames, dense, dense_weight, is_linear, layer_shape, saved
from .lora import LoRA, init_lora, read_factors
from .products import PLAIN, LayerProducts

EPS = torch.finfo(torch.float32).eps
"""ComfyUI adds it to every norm."""


class DoRA(LoRA):
    """magnitude * V / ||V|| with V = W + scale * up @ down, one norm for each input column.

    The norm is a constant in the backward pass (section 4.3 of the paper). A magnitude for each output row, as some
    files hold it, is applied as ComfyUI does: divided by the norm of the row of W, not of V.

    Args:
        magnitude: (1, in, *1s), or (out, 1, *1s) in the form by rows.
    """

    kind = "dora"
    names = AdapterNames(title="DoRA", lycoris=("locon",), lycoris_arguments={"dora_wd": True}, ai_toolkit=("dora",))
    needs_weight = True
    is_off_without_ranks = False

    def __init__(self, down: Tensor, up: Tensor, magnitude: Tensor, alpha: float):
        super().__init__(down, up, alpha)
        self.magnitude = nn.Parameter(magnitude)
        self._squares: tuple[weakref.ref[nn.Module], Tensor] | None = None
        """a layer, and the `square_sums` of its weight, which is frozen"""

    @classmethod
    def new(cls, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, factor: int = -1) -> Adapter:
        """A fresh adapter whose magnitudes are the weight's column norms.

        A layer with one output row gets LoRA: DoRA would leave that row nothing to learn but signs.
        """
        if layer_shape(layer)[0] == 1:
            return LoRA.new(layer, rank, alpha, generator)
        weight = dense_weight(layer)
        down, up = init_lora(layer_shape(layer), rank, generator)
        norms = column_norms(weight, down.to(weight.device), up.to(weight.device)) + EPS
        return cls(down, up, norms, alpha)

    def fused(self, layer: nn.Module, x: Tensor, products: LayerProducts = PLAIN) -> Tensor | None:
        if not is_linear(layer) or self._is_by_rows(layer) or not self.can_fuse(layer, x, products):
            return None
        return super().fused(layer, self._scaled(layer, x), products)

    def adapted(self, layer: nn.Module, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self._is_by_rows(layer):
            return self._adapted_by_rows(layer, base, x)
        return super().adapted(layer, base, self._scaled(layer, x))

    def _scaled(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The input with each channel times magnitude / norm: scaling W's columns, so the merged weight is never made.

        In float32: in bf16 the factors would change in steps of 0.4 %.
        """
        weight = dense(layer.weight).detach()  # pyright: ignore
        if weight.dtype.itemsize < 2:  # 8-bit numbers cannot be multiplied
            weight = weight.to(self.up.dtype)
        with torch.no_grad():
            if self._squares is None or self._squares[0]() is not layer:
                self._squares = weakref.ref(layer), square_sums(weight.to(self.up.dtype))
            norms = column_norms(weight, self.down, self.up * self.scale, self._squares[1]) + EPS
        return (x * _along_channels(self.magnitude / norms, layer)).to(x.dtype)

    def _adapted_by_rows(self, layer: nn.Module, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        weight = dense_weight(layer).to(self.up.dtype)
        output = super().adapted(layer, base, x)
        rows = _along_channels(self.magnitude / row_norms(weight), layer)
        if layer.bias is None:
            return (output * rows).to(output.dtype)
        assert isinstance(layer.bias, Tensor)
        bias = _along_channels(dense(layer.bias).to(rows.dtype), layer)
        return ((output - bias) * rows + bias).to(output.dtype)

    def merged(self, weight: Tensor) -> Tensor:
        weight = weight.to(self.up.dtype)
        changed = weight + super().difference(weight)
        if self.magnitude.shape[0] == weight.shape[0]:
            return changed * (self.magnitude / row_norms(weight)).reshape(-1, *(1 for _ in weight.shape[1:]))
        norms = changed.transpose(0, 1).flatten(1).norm(dim=1) + EPS
        return changed * (self.magnitude.flatten() / norms).reshape(1, -1, *(1 for _ in weight.shape[2:]))

    def difference(self, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            raise ValueError("DoRA's difference depends on the weight.")
        return self.merged(weight) - weight.float()

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "dora_scale": saved(self.magnitude)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> "DoRA | None":
        factors = read_factors(tensors)
        if factors is None or len(tensors) != 3 or "dora_scale" not in tensors or tensors["dora_scale"].dim() < 2:
            return None
        return cls(*factors, tensors["dora_scale"], factors[0].shape[0] if alpha is None else alpha)

    def _is_by_rows(self, layer: nn.Module) -> bool:
        return self.magnitude.shape[0] == layer_shape(layer)[0]


def square_sums(weight: Tensor) -> Tensor:
    """||weight||^2 for each input column: (in,)."""
    return weight.transpose(0, 1).flatten(1).square().sum(1)


def column_norms(weight: Tensor, down: Tensor, up: Tensor, squares: Tensor | None = None) -> Tensor:
    """||weight + up @ down|| for each input column, without computing the sum: (1, in, *1s).

    Args:
        weight: (out, in, *kernel). In bf16 its product with up is computed in bf16: an error of 0.4 % in a term that is
            small beside ||weight||^2.
        down: (rank, in, *kernel) or (rank, in * prod(kernel)).
        up: (out, rank, *1s), already multiplied by the scale.
        squares: the weight's `square_sums`, if they are known.
    """
    up = up.flatten(1)
    down = down.reshape(down.shape[0], -1)  # (rank, in * k)
    cross = (up.T.to(weight.dtype) @ weight.flatten(1)).to(down.dtype)
    added = ((2 * cross + (up.T @ up) @ down) * down).sum(0).unflatten(0, (weight.shape[1], -1)).sum(1)
    squared = added + (square_sums(weight.to(down.dtype)) if squares is None else squares)
    return squared.clamp(min=0).sqrt().reshape(1, -1, *(1 for _ in weight.shape[2:]))


def row_norms(weight: Tensor) -> Tensor:
    """||weight|| + EPS for each output row: (out, 1, *1s)."""
    return weight.flatten(1).norm(dim=1).reshape(-1, *(1 for _ in weight.shape[1:])) + EPS


def _along_channels(values: Tensor, layer: nn.Module) -> Tensor:
    """One value a channel, shaped to be multiplied with the layer's input or output."""
    return values.reshape(-1, *(1 for _ in layer_shape(layer)[2:]))
