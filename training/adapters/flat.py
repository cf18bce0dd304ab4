"""The trained parameters side by side in memory: one long tensor a learning rate, not thousands of small ones."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from . import Adapter

ALIGNMENT = 64
"""Every parameter begins at a multiple of this many elements, so that matrix kernels read aligned words."""


class FlatParameters:
    """The parameters of some adapters as one tensor, with one of their gradients beside it.

    The adapters' parameters become views of `values`, and their gradients views of `values.grad`, which is never
    replaced: backward passes add to it, and an optimizer can update a single tensor. Where the base model computes in
    another number format, `refresh` updates the adapters' copies in that format.

    Args:
        adapters: each parameter float32.
        device: where they are trained.
        dtype: the base model's number format.
    """

    def __init__(self, adapters: Iterable[Adapter], device: torch.device, dtype: torch.dtype):
        self.adapters = list(adapters)
        self.members = sorted(
            ((adapter, name, parameter) for adapter in self.adapters for name, parameter in adapter.named_parameters()),
            key=lambda member: (member[1], [tuple(parameter.shape) for parameter in member[0].parameters()]),
        )
        """(adapter, name in it, parameter) in the order in memory: parameters that may be multiplied together adjoin"""
        sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for _, _, parameter in self.members]
        self.values = nn.Parameter(torch.zeros(sum(sizes), device=device))
        """(N,) float32"""
        self.values.grad = torch.zeros_like(self.values)
        self.copies = None if dtype == torch.float32 else torch.zeros_like(self.values, dtype=dtype)
        """(N,) in the base model's number format; None where that is float32"""
        start, places = 0, {}
        for (adapter, name, parameter), size in zip(self.members, sizes, strict=True):
            place, shape = slice(start, start + parameter.numel()), parameter.shape
            places[id(parameter)] = slice(start, start + size)
            self.values.data[place].copy_(parameter.data.flatten())
            parameter.data = self.values.data[place].view(shape)
            parameter.grad = self.values.grad[place].view(shape)
            if self.copies is not None:
                adapter.copies[name] = self.copies[place].view(shape)
            start += size
        self._in_order = [places[id(parameter)] for parameter in self.parameters]
        self.refresh()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapters' parameters in their order, for an optimizer that needs their shapes."""
        return [parameter for adapter in self.adapters for parameter in adapter.parameters()]

    @torch.no_grad()
    def in_order(self, laid: torch.Tensor) -> torch.Tensor:
        """Numbers in the order of `values`, brought to the adapters' order, in which checkpoints hold them."""
        return torch.cat([laid[place] for place in self._in_order])

    @torch.no_grad()
    def as_laid(self, ordered: torch.Tensor) -> torch.Tensor:
        """The inverse of `in_order`."""
        laid, start = torch.empty_like(ordered), 0
        for place in self._in_order:
            size = place.stop - place.start
            laid[place] = ordered[start : start + size]
            start += size
        return laid

    @torch.no_grad()
    def joined(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """Tensors of the shapes of `parameters` as one, in the adapters' order, as `in_order` gives it."""
        flat = [tensor.flatten() for tensor in tensors]
        return torch.cat([F.pad(each, (0, -each.numel() % ALIGNMENT)) for each in flat])

    @torch.no_grad()
    def refresh(self) -> None:
        """Updates the copies from the values."""
        if self.copies is not None:
            self.copies.copy_(self.values)
