"""What is trained, laid side by side: one long tensor for each learning rate instead of thousands of small ones."""

from collections.abc import Iterable

import torch
from torch import nn

from .adapters import Adapter

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
        start = 0
        for (adapter, name, parameter), size in zip(self.members, sizes, strict=True):
            place, shape = slice(start, start + parameter.numel()), parameter.shape
            self.values.data[place].copy_(parameter.data.flatten())
            parameter.data = self.values.data[place].view(shape)
            parameter.grad = self.values.grad[place].view(shape)
            if self.copies is not None:
                adapter.copies[name] = self.copies[place].view(shape)
            start += size
        self.refresh()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The adapters' own, for an optimizer that must know their shapes."""
        return [parameter for adapter in self.adapters for parameter in adapter.parameters()]

    @torch.no_grad()
    def refresh(self) -> None:
        """The working copies follow the values."""
        if self.copies is not None:
            self.copies.copy_(self.values)
