"""Linear layers with LoRA as one operation: the low-rank products add to what the layers' own products give."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import host


class LowRankLinear(torch.autograd.Function):
    """y = x W^T + b + scale (x down^T) up^T, all in the arithmetic of x.

    Products add to what is there (GEMM's beta), so that the low-rank part costs no pass over the activations of its
    own but for reading them. Gradients of down and up are added, in float32, to the parameters' `.grad`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
        down_parameter: nn.Parameter,
        up_parameter: nn.Parameter,
    ) -> Tensor:
        """(rows, in) -> (rows, out).

        Args:
            weight: (out, in), plain or quantised.
            down: (rank, in); up: (out, rank), in the arithmetic of x: the parameters or their copies.
            down_parameter, up_parameter: float32, each with its `.grad`.
        """
        hidden = x @ down.T
        output = host.linear(x, weight, bias).addmm_(hidden, up.T, alpha=scale)
        ctx.save_for_backward(x, hidden, weight, down, up)
        ctx.scale, ctx.parameters = scale, (down_parameter, up_parameter)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, hidden, weight, down, up = ctx.saved_tensors
        gradient = gradients[0]
        toward_hidden = torch.addmm(hidden, gradient, up, beta=0, alpha=ctx.scale)
        down_parameter, up_parameter = ctx.parameters
        _add_product(down_parameter.grad.view(down.shape), toward_hidden.T, rows, 1.0)
        _add_product(up_parameter.grad.view(up.shape), gradient.T, hidden, ctx.scale)
        toward_x = None
        if ctx.needs_input_grad[0]:
            toward_x = host.linear_backward(gradient, weight).addmm_(toward_hidden, down)
        return toward_x, *(None,) * 7


@dataclass(frozen=True)
class Joined:
    """Linear layers of one shape, and the LoRA of each, side by side.

    The parameters' `.grad` must stay the tensors that they were when this was made.
    """

    weight: Tensor
    """(layers * out, in)"""
    bias: Tensor | None
    """(layers * out,)"""
    down: Tensor
    """(layers * rank, in) in the arithmetic of the weight"""
    up: Tensor
    """(layers, out, rank) in the arithmetic of the weight"""
    down_gradient: Tensor
    """(layers * rank, in) float32; gradients are added to it"""
    up_gradient: Tensor
    """(layers, out, rank) float32; gradients are added to it"""
    scale: float

    def by_layer(self, rows: Tensor) -> Tensor:
        """(rows, layers * n) -> (layers, rows, n), the same memory."""
        return rows.unflatten(1, (self.up.shape[0], -1)).transpose(0, 1)


class LowRankLinears(torch.autograd.Function):
    """What `LowRankLinear` gives for each of several layers of one input, in as few products as one layer takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, learned: Tensor, layers: Joined) -> tuple[Tensor, ...]:
        """(rows, in) -> (rows, out) for each layer.

        Args:
            learned: any parameter, so that autograd knows that there is something to learn.
        """
        features = layers.up.shape[1]
        hidden = x @ layers.down.T
        output = nn.functional.linear(x, layers.weight, layers.bias)
        layers.by_layer(output).baddbmm_(layers.by_layer(hidden), layers.up.transpose(1, 2), alpha=layers.scale)
        ctx.save_for_backward(x, hidden, layers.weight, layers.down, layers.up)
        ctx.layers = layers
        # Not as views, which may not be written to, and models do.
        return tuple(torch.ops.aten.unsafe_split(output, features, 1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, hidden, weight, down, up = ctx.saved_tensors
        layers: Joined = ctx.layers
        gradient = torch.cat(gradients, 1)
        by_layer = layers.by_layer(gradient)
        toward_hidden = torch.empty_like(hidden)
        layers.by_layer(toward_hidden).baddbmm_(by_layer, up, beta=0, alpha=layers.scale)
        _add_product(layers.down_gradient, toward_hidden.T, rows, 1.0)
        _add_product(layers.up_gradient, by_layer.transpose(1, 2), layers.by_layer(hidden), layers.scale)
        toward_x = None
        if ctx.needs_input_grad[0]:
            toward_x = (gradient @ weight).addmm_(toward_hidden, down)
        return toward_x, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """total += scale a b, summed in float32 whatever a and b are: no rounding between the product and the sum.

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
