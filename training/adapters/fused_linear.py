"""A linear layer with LoRA as one operation: six matrix products forward and backward beside the layer's own two."""

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
        _add_product(down_parameter.grad, toward_hidden.T, rows, 1.0)
        _add_product(up_parameter.grad, gradient.T, hidden, ctx.scale)
        toward_x = None
        if ctx.needs_input_grad[0]:
            toward_x = host.linear_backward(gradient, weight).addmm_(toward_hidden, down)
        return toward_x, *(None,) * 7


def _add_product(total: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """total += scale a b, summed in float32 whatever a and b are: no rounding between the product and the sum."""
    total = total.view(a.shape[0], b.shape[1])
    if a.dtype == total.dtype:
        total.addmm_(a, b, alpha=scale)
    elif a.is_cuda and hasattr(torch.ops.aten.addmm, "dtype_out"):
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, alpha=scale, out=total)
    else:
        total.addmm_(a.float(), b.float(), alpha=scale)
