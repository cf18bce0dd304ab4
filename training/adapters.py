"""The low-rank parametrisation, as pure functions (Hu et al., arXiv:2106.09685)."""

import math

import torch
import torch.nn.functional as F


def init_lora(
    weight_shape: torch.Size | tuple[int, ...], rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh factors for a weight: down as kohya draws it (kaiming uniform, a = sqrt 5), up zero.

    Args:
        weight_shape: (out, in) of a linear layer, (out, in, *kernel) of a convolution.
        rank: inner dimension.

    Returns:
        down (rank, in, *kernel), up (out, rank, *1s), float32 on the CPU.
    """
    out_features, in_features, *kernel = weight_shape
    down = torch.empty(rank, in_features, *kernel)
    bound = 1.0 / math.sqrt(in_features * math.prod(kernel))
    down.uniform_(-bound, bound, generator=generator)
    up = torch.zeros(out_features, rank, *(1 for _ in kernel))
    return down, up


def lora_linear(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """scale * up(down(x)): (..., in) -> (..., out), in the arithmetic of x."""
    return F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype) * scale)


def lora_conv(
    x: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
    stride: tuple[int, ...],
    padding: tuple[int, ...] | str,
    dilation: tuple[int, ...],
) -> torch.Tensor:
    """scale * up(down(x)) for a convolution: down has the layer's kernel, up is 1x1."""
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[down.dim() - 2]
    hidden = convolve(x, down.to(x.dtype), stride=stride, padding=padding, dilation=dilation)
    return convolve(hidden, up.to(x.dtype) * scale)


def lora_difference(down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """The change of the weight that the factors stand for, in the weight's shape."""
    product = up.flatten(1) @ down.flatten(1)
    return scale * product.reshape(up.shape[0], *down.shape[1:])
