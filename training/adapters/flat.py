"""What is trained, laid side by side: one long tensor for each learning rate instead of thousands of small ones."""

from collections.abc import Iterable

import torch
from torch import nn

from . import Adapter

ALIGNMENT = 64
"""Elements; every parameter begins at a multiple, where matrix kernels read in whole words."""


class FlatParameters:
    """The parameters of some adapters as one tensor, with one of their gradients beside it.

    The adapters' parameters become views of `values`, and their gradients views of `values.grad`, which lies in its
    place for good: whoever computes a gradient adds to it, and whoever moves the parameters moves one tensor. Where
    the base model computes in another number format, `refresh` brings the adapters' working copies up to date.

    Args:
        adapters: each parameter float32.
        device: where they are trained.
        dtype: the base model's arithmetic.
    """

    def __init__(self, adapters: Iterable[Adapter], device: torch.device, dtype: torch.dtype):
        self.adapters = list(adapters)
        self.members = sorted(
            ((adapter, name, parameter) for adapter in self.adapters for name, parameter in adapter.named_parameters()),
            key=lambda member: (member[1], [tuple(parameter.shape) for parameter in member[0].parameters()]),
        )
        """(adapter, name in it, parameter) each: what may be multiplied together lies side by side"""
        sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for _, _, parameter in self.members]
        self.values = nn.Parameter(torch.zeros(sum(sizes), device=device))
        """(N,) float32"""
        self.values.grad = torch.zeros_like(self.values)
        self.copies = None if dtype == torch.float32 else torch.zeros_like(self.values, dtype=dtype)
        """(N,) in the base model's arithmetic; None where that is float32"""
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
        """The adapters' own, for an optimizer that must know their shapes."""
        return [parameter for adapter in self.adapters for parameter in adapter.parameters()]

    @torch.no_grad()
    def in_order(self, laid: torch.Tensor) -> torch.Tensor:
        """What lies as `values` do, adapter by adapter: the order of checkpoints, which no change of layout changes."""
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
    def refresh(self) -> None:
        """The working copies follow the values."""
        if self.copies is not None:
            self.copies.copy_(self.values)
