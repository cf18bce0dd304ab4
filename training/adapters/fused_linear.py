"""Linear layers with LoRA as one operation: the low-rank products are added to the outputs of the layers' own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .products import LayerProducts


@dataclass(frozen=True, eq=False)
class Trained:
    """A LoRA as `LowRankLinear` trains it."""

    down: nn.Parameter
    """float32, with its `.grad`"""
    up: nn.Parameter
    """float32, with its `.grad`"""
    scale: float
    ranks: Tensor | None
    """(rank,) factor on each rank; None: 1"""


class LowRankLinear(torch.autograd.Function):
    """y = x W^T + b + scale (x down^T) ranks up^T, all in the arithmetic of x.

    The low-rank products are accumulated into the layer's output and gradient (GEMM's beta), which saves separate
    passes over the activations. Gradients of down and up are added, in float32, to the parameters' `.grad`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        learned: Tensor,
        trained: Trained,
        products: LayerProducts,
    ) -> Tensor:
        """(rows, in) -> (rows, out).

        Args:
            weight: (out, in), plain or quantised.
            down: (rank, in); up: (out, rank), in the number format of x: the parameters or their copies.
            learned: one of the trained parameters; without one autograd would skip the backward pass.
            products: multiply by the weight.
        """
        hidden = x @ down.T
        if trained.ranks is not None:
            hidden.mul_(trained.ranks)
        output = products.linear(x, weight, bias).addmm_(hidden, up.T, alpha=trained.scale)
        ctx.save_for_backward(x, hidden, weight, down, up)
        ctx.trained, ctx.products = trained, products
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, hidden, weight, down, up = ctx.saved_tensors
        gradient = gradients[0]
        trained: Trained = ctx.trained
        assert trained.down.grad is not None and trained.up.grad is not None
        toward_hidden = torch.addmm(hidden, gradient, up, beta=0, alpha=trained.scale)
        if trained.ranks is not None:
            toward_hidden.mul_(trained.ranks)
        _add_product(trained.down.grad.view(down.shape), toward_hidden.T, rows, 1.0)
        _add_product(trained.up.grad.view(up.shape), gradient.T, hidden, trained.scale)
        toward_x = None
        if ctx.needs_input_grad[0]:
            toward_x = ctx.products.linear_backward(gradient, weight).addmm_(toward_hidden, down)
        return toward_x, *(None,) * 7


@dataclass(frozen=True)
class Joined:
    """Linear layers of one shape and their LoRAs, whose tensors lie side by side in memory.

    The parameters' `.grad` must remain the same tensors as long as this is used.
    """

    weight: Tensor
    """(layers * out, in)"""
    bias: Tensor | None
    """(layers * out,)"""
    down: Tensor
    """(layers * rank, in) in the number format of the weight"""
    up: Tensor
    """(layers, out, rank) in the number format of the weight"""
    down_gradient: Tensor
    """(layers * rank, in) float32; gradients are added to it"""
    up_gradient: Tensor
    """(layers, out, rank) float32; gradients are added to it"""
    scale: float

    def by_layer(self, rows: Tensor) -> Tensor:
        """(rows, layers * n) -> (layers, rows, n), the same memory."""
        return rows.unflatten(1, (self.up.shape[0], -1)).transpose(0, 1)


class LowRankLinears(torch.autograd.Function):
    """`LowRankLinear` for several layers that read one input, in as many matrix products as a single layer takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, learned: Tensor, layers: Joined, ranks: Tensor | None) -> tuple[Tensor, ...]:
        """(rows, in) -> (rows, out) for each layer.

        Args:
            learned: any trained parameter; without one autograd would skip the backward pass.
            ranks: (layers * rank,) factor on each rank; None: 1.
        """
        features = layers.up.shape[1]
        hidden = x @ layers.down.T
        if ranks is not None:
            hidden.mul_(ranks)
        output = nn.functional.linear(x, layers.weight, layers.bias)
        layers.by_layer(output).baddbmm_(layers.by_layer(hidden), layers.up.transpose(1, 2), alpha=layers.scale)
        ctx.save_for_backward(x, hidden, layers.weight, layers.down, layers.up)
        ctx.layers, ctx.ranks = layers, ranks
        # Not as views: autograd forbids in-place writes to a Function's views, and models write into these outputs.
        return tuple(torch.ops.aten.unsafe_split(output, features, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, hidden, weight, down, up = ctx.saved_tensors
        layers: Joined = ctx.layers
        gradient = torch.cat(gradients, 1)
        by_layer = layers.by_layer(gradient)
        toward_hidden = torch.empty_like(hidden)
        layers.by_layer(toward_hidden).baddbmm_(by_layer, up, beta=0, alpha=layers.scale)
        if ctx.ranks is not None:
            toward_hidden.mul_(ctx.ranks)
        _add_product(layers.down_gradient, toward_hidden.T, rows, 1.0)
        _add_product(layers.up_gradient, by_layer.transpose(1, 2), layers.by_layer(hidden), layers.scale)
        toward_x = None
        if ctx.needs_input_grad[0]:
            toward_x = (gradient @ weight).addmm_(toward_hidden, down)
        return toward_x, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """total += scale a b, accumulated in float32 for every number format of a and b, without rounding in between.

    Args:
        total: (n, m) or (batch, n, m) float32; a: (n, k) and b: (k, m), or with the batch.
    """
    name = "addmm" if total.dim() == 2 else "baddbmm"
    own: Any = getattr(torch.ops.aten, name)
    if a.dtype == total.dtype:
        getattr(total, f"{name}_")(a, b, alpha=scale)
    elif a.is_cuda and hasattr(own, "dtype_out"):
        own.dtype_out(total, a, b, total.dtype, alpha=scale, out=total)
    else:
        getattr(total, f"{name}_")(a.float(), b.float(), alpha=scale)
