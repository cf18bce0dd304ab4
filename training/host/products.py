"""The products of frozen linear layers, there and back, whatever their weights are held in.

A quantised weight is made dense on the fly, in the forward pass and again in the backward pass; in between only the
quantised weight is kept. The host's own way of training through such a layer rounds the layer's input to the weight's
format as well, or keeps the dense weight for the backward pass.

A weight for fp8 matmul is not made dense: input and gradient are brought to e4m3 as well, each row (a token) with a
scale of its own, and both products are those of 8-bit numbers, summed as fast as the GPU sums them.
"""

import functools
import weakref
from typing import Any

import comfy.ops
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..adapters.products import LayerProducts
from .device import has_kernels
from .fusion import has_functions, is_unchanged
from .quantise import FP8, LARGEST, dense, is_linear, is_multiplied, is_quantised

SMALLEST = 2.0**-100
"""of a row's largest number, so that nothing is divided by zero; as in kernels/e4m3.py"""
MULTIPLE = 16
"""Both sides of a matrix must be one for 8-bit products."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b.

    Args:
        x: (..., in).
        weight: (out, in), plain or quantised.
        bias: (out,) in the arithmetic of x.
    """
    if not is_multiplied(weight):
        return F.linear(x, dense(weight, x.dtype), bias)
    numbers, scale = rows_to_e4m3(x.reshape(-1, x.shape[-1]))
    rows = _product(numbers, scale, weight._qdata, weight._params.scale.T, bias, x.dtype)  # pyright: ignore
    return _shaped(rows, x)


def linear_backward(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x: (..., out) -> (..., in)."""
    if not is_multiplied(weight):
        return gradient @ dense(weight, gradient.dtype)
    qdata, weight_scale = weight._qdata, weight._params.scale  # pyright: ignore
    # The weight's scales, powers of two, run along what is summed over here: they go to the gradient before.
    numbers, scale = rows_to_e4m3(gradient.reshape(-1, gradient.shape[-1]), weight_scale.flatten())
    ones = torch.ones(1, qdata.shape[1], device=qdata.device)
    return _shaped(_product(numbers, scale, _transposed(qdata), ones, None, gradient.dtype), gradient)


def rows_to_e4m3(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each row in e4m3 with a scale of its own, which brings its largest number to the format's.

    Args:
        x: (rows, columns).
        factors: (columns,) float32 that x is multiplied by first; None = 1.

    Returns:
        (rows, columns) e4m3 and (rows, 1) float32, whose product is near x.
    """
    if x.is_cuda and has_kernels(x.device):
        from .. import kernels

        return kernels.rows_to_e4m3(x.contiguous(), factors)
    exact = x.float() if factors is None else x.float() * factors
    scale = exact.abs().amax(1, keepdim=True).clamp(min=SMALLEST) / LARGEST
    return (exact / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


@functools.cache
def fp8_matmul_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why a device has no 8-bit products; empty where it has. Without them the same numbers go by `dtype`'s."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return "this device has none; NVIDIA GPUs from Ada (RTX 40) on have"
    if dtype != torch.bfloat16:
        return "they give bf16: set precision to bf16"
    if not has_kernels(device):
        return "Triton does not work here"
    some, ones = torch.zeros(MULTIPLE, MULTIPLE, device=device).to(FP8), torch.ones(MULTIPLE, 1, device=device)
    try:
        torch._scaled_mm(some, some.T, ones, ones.T, out_dtype=dtype, use_fast_accum=True)
    except torch.OutOfMemoryError:  # of now, and no reason for later
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:  # the person is told: see the learner
        return str(error).strip().split("\n")[0]
    return ""


def _product(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """a b^T + bias in `dtype`.

    Args:
        a: (rows, n) e4m3; scale_a: (rows, 1).
        b: (columns, n) e4m3; scale_b: (1, columns).
    """
    if not fp8_matmul_obstacle(a.device, dtype) and b.shape[0] % MULTIPLE == b.shape[1] % MULTIPLE == 0:
        return torch._scaled_mm(a, b.T, scale_a, scale_b, bias, out_dtype=dtype, use_fast_accum=True)
    product = (a.to(dtype) @ b.to(dtype).T).mul_(scale_a).mul_(scale_b)
    return product if bias is None else product.add_(bias)


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    """(rows, n) -> (..., n), not as a view, which a Function may not give where models write into what they get."""
    return torch.ops.aten._unsafe_view(rows, [*like.shape[:-1], rows.shape[1]])


def _transposed(numbers: Tensor) -> Tensor:
    if numbers.is_cuda and has_kernels(numbers.device):
        from ..kernels import transposed

        return transposed(numbers)
    return numbers.view(torch.uint8).T.contiguous().view(numbers.dtype)


def compute_quantised(twin: nn.Module) -> list[str]:
    """Lets every linear layer with a quantised weight compute as this file says.

    Args:
        twin: from `twin_of`; its layers are changed for good.

    Returns:
        The names of the layers. Not among them are layers that wrap their weight in functions of other nodes: they
        compute as the host does.
    """
    names = []
    for name, layer in twin.named_modules():
        if is_linear(layer) and is_quantised(layer.weight) and is_unchanged(layer):
            layer.forward = _Quantised(layer)
            names.append(name)
    return names


def is_plain(layer: Any) -> bool:
    """Whether a layer gives its weight's product with its input and nothing else, by its class or by this file."""
    forward = vars(layer).get("forward")
    if has_functions(layer) or not (forward is None or isinstance(forward, _Quantised)):
        return False
    return getattr(layer, "pre_quant_scale", None) is None


PRODUCTS = LayerProducts(linear, linear_backward, is_quantised, is_plain)
"""For the layers of a twin."""


class _Quantised:
    """Stands in for a linear layer's forward. It holds the layer weakly: a twin is to go when the run ends."""

    def __init__(self, layer: nn.Module):
        self.layer = weakref.ref(layer)

    def __call__(self, x: Tensor) -> Tensor:
        layer: Any = self.layer()
        comfy.ops.run_every_op()
        smoothing = getattr(layer, "pre_quant_scale", None)
        if smoothing is not None:
            x = x * smoothing.to(x.device, x.dtype)
        bias = None if layer.bias is None else layer.bias.to(x.device, x.dtype)
        return _Linear.apply(x, layer.weight, bias)  # pyright: ignore[reportReturnType]


class _Linear(torch.autograd.Function):
    """y = x W^T + b with a frozen W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        (weight,) = ctx.saved_tensors
        return linear_backward(gradient, weight), None, None
