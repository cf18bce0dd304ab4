"""A stand-in for Apple's GPUs: no tensor may be float64. Its tensors have shapes alone: nothing is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
ATEN = torch.ops.aten
NAMES = (
    *("linalg_qr", "_linalg_svd", "_linalg_solve_ex", "linalg_cholesky_ex", "_linalg_eigh", "linalg_inv_ex", "geqrf"),
    *("linalg_householder_product", "linalg_lu_factor_ex"),
)
MISSING = tuple(getattr(ATEN, name) for name in NAMES)
"""Operations that Apple's or Intel's GPUs lack, or lacked in a torch that the host allows."""


class WithoutFloat64(TorchDispatchMode):
    """Inside, an operation that makes a float64 tensor on DEVICE, or that is missing there, raises as on MPS.

    Copies to the CPU, and numbers read from the device, are zeros.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_here = any(_lies_on_device(each) for each in tree_leaves((args, kwargs)))
        if is_here and func.overloadpacket in MISSING:
            raise NotImplementedError(f"The operator '{func}' is not currently implemented for the MPS device.")
        if is_here and func in (ATEN._local_scalar_dense.default, ATEN.item.default):
            return {torch.bool: False, torch.int64: 0}.get(args[0].dtype, 0.0)
        asked = (*args[1:], *kwargs.values())
        if is_here and func.overloadpacket in (ATEN._to_copy, ATEN.to) and CPU in asked:
            dtype = next((each for each in asked if isinstance(each, torch.dtype)), args[0].dtype)
            return torch.zeros(args[0].shape, dtype=dtype)
        if func is ATEN.copy_.default and args[0].device == CPU and _lies_on_device(args[1]):
            return args[0].zero_()
        result = func(*args, **kwargs)
        for each in tree_leaves(result):
            if _lies_on_device(each) and each.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it.")
        return result


def _lies_on_device(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device == DEVICE
