"""Forward and backward products of frozen linear layers, for plain and quantised weights.

A quantised weight is dequantised in the forward pass and again in the backward pass; in between only the quantised
weight is kept. The host's own training path through such a layer also rounds the layer's input to the weight's format,
or keeps the dequantised weight for the backward pass.

With fp8 matmul the weight is not dequantised: input and gradient are converted to e4m3, each row (token) with its own
scale, and both products are computed from 8-bit numbers, with the GPU's fast accumulation.
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
from ..basics.backends import backend_of
from ..basics.memory import is_device_full
from .device import has_kernels
from .fusion import has_functions, is_unchanged
from .quantise import FP8, LARGEST, dense, is_host_linear, is_multiplied, is_quantised

SMALLEST = 2.0**-100
"""Lower bound of a row's largest magnitude, against division by zero; the same as in kernels/e4m3.py."""
MULTIPLE = 16
"""8-bit products need both sides of a matrix to be multiples of it."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b.

    Args:
        x: (..., in).
        weight: (out, in), plain or quantised.
        bias: (out,), of x's dtype.
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
    # The weight's scales (powers of two) lie along the summed dimension, so the gradient is multiplied by them first.
    numbers, scale = rows_to_e4m3(gradient.reshape(-1, gradient.shape[-1]), weight_scale.flatten())
    ones = torch.ones(1, qdata.shape[1], device=qdata.device)
    return _shaped(_product(numbers, scale, _transposed(qdata), ones, None, gradient.dtype), gradient)


def rows_to_e4m3(x: Tensor, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantises each row to e4m3 with its own scale, such that its largest magnitude is e4m3's largest number.

    Args:
        x: (rows, columns).
        factors: (columns,) float32 by which x is multiplied first; None = 1.

    Returns:
        (rows, columns) e4m3 and scales (rows, 1) float32; their product approximates x.
    """
    if x.is_cuda and has_kernels(x.device):
        from .. import kernels

        return kernels.rows_to_e4m3(x.contiguous(), factors)
    exact = x.float() if factors is None else x.float() * factors
    scale = exact.abs().amax(1, keepdim=True).clamp(min=SMALLEST) / LARGEST
    return (exact / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


@functools.cache
def fp8_matmul_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    """Why a device cannot multiply in 8 bits; empty if it can. If not, rounded numbers are multiplied in `dtype`."""
    if not backend_of(device).is_nvidia or torch.cuda.get_device_capability(device) < (8, 9):
        return "this device has none; NVIDIA GPUs from Ada (RTX 40) on have"
    if dtype != torch.bfloat16:
        return "they give bf16: set precision to bf16"
    if not has_kernels(device):
        return "Triton does not work here"
    some, ones = torch.zeros(MULTIPLE, MULTIPLE, device=device).to(FP8), torch.ones(MULTIPLE, 1, device=device)
    try:
        torch._scaled_mm(some, some.T, ones, ones.T, out_dtype=dtype, use_fast_accum=True)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # shown to the user by the builder
        if is_device_full(error):  # says nothing about later calls
            raise
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
    """(rows, n) -> (..., n). Not a view: models write in place into a Function's output, which must not be one."""
    return torch.ops.aten._unsafe_view(rows, [*like.shape[:-1], rows.shape[1]])


def _transposed(numbers: Tensor) -> Tensor:
    if numbers.is_cuda and has_kernels(numbers.device):
        from ..kernels import transposed

        return transposed(numbers)
    return numbers.view(torch.uint8).T.contiguous().view(numbers.dtype)


def compute_quantised(twin: nn.Module) -> list[str]:
    """Makes the linear layers with quantised weights use `linear` and `linear_backward`.

    Args:
        twin: its layers are changed in place.

    Returns:
        The names of the layers. Layers with weight functions of other nodes are left to the host.
    """
    names = []
    for name, layer in twin.named_modules():
        if is_host_linear(layer) and is_quantised(layer.weight) and is_unchanged(layer):
            layer.forward = _Quantised(layer)
            names.append(name)
    return names


def is_plain(layer: Any) -> bool:
    """Whether a linear layer computes exactly x W^T + b, without weight functions, patches or input scaling."""
    forward = vars(layer).get("forward")
    if has_functions(layer) or not (forward is None or isinstance(forward, _Quantised)):
        return False
    return getattr(layer, "pre_quant_scale", None) is None


PRODUCTS = LayerProducts(linear, linear_backward, is_quantised, is_plain)
"""For the layers of a twin."""


class _Quantised:
    """Replaces a linear layer's forward. The reference is weak: a cycle would keep the twin alive after the run."""

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
