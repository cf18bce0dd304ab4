"""Factorisations of matrices and solutions of equations, which not every device computes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .backends import backend_of


def qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Q (m, k) and R (k, n) of (m, n), with k the smaller side."""
    q, r = _computed(torch.linalg.qr, matrix)
    return q, r


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), the singular values (k,), descending, and V^T (k, n) of (m, n), with k the smaller side."""
    u, s, vh = _computed(lambda each: torch.linalg.svd(each, full_matrices=False), matrix)
    return u, s, vh


def solve(a: Tensor, b: Tensor) -> Tensor:
    """X of A X = B, for (..., n, n) and (..., n, m), with gradients to both; A is not checked to be regular."""
    return _computed(lambda *both: torch.linalg.solve_ex(*both)[:1], a, b)[0]


def _computed(compute: Callable[..., Sequence[Tensor]], *tensors: Tensor) -> list[Tensor]:
    """The results of a function, computed on the CPU where the tensors' device lacks it; they lie on that device."""
    device = tensors[0].device
    if backend_of(device).has_linear_algebra:
        return list(compute(*tensors))
    return [each.to(device) for each in compute(*(tensor.cpu() for tensor in tensors))]
