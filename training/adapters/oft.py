"""OFT: orthogonal finetuning (Qiu et al., arXiv:2306.07280)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..basics.linear_algebra import solve
from .base import Adapter, AdapterNames, dense, is_linear, largest_divisor, layer_shape, saved


class OFT(Adapter):
    """The weight's output rows, rotated block by block; the bias stays.

    The rotation is Cayley's R = (I + Q)(I - Q)^-1 of the skew Q = blocks - blocks^T, and W' = R^T W.

    Args:
        blocks: (number of blocks, block size, block size).
        constraint: largest norm of the layer's Q (constrained OFT); None = none.
    """

    kind = "oft"
    names = AdapterNames(title="OFT", lycoris=("diag-oft",), kohya=("networks.oft", "networks.oft_flux"))
    notes = ("alpha has no effect on OFT. ComfyUI applies the strength of an OFT file twice: 0.7 acts as 0.5, 1 as 1.",)
    has_input_dropout = False
    has_scale = False
    needs_weight = True

    def __init__(self, blocks: Tensor, constraint: float | None = None):
        super().__init__(blocks.shape[1], float(blocks.shape[1]))
        self.blocks = nn.Parameter(blocks)
        self.constraint = constraint

    @classmethod
    def new(cls, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, factor: int = -1) -> Adapter:
        """Blocks of zeros, whose size is the largest divisor of the rows up to rank and the rows' square root."""
        rows = layer_shape(layer)[0]
        size = largest_divisor(rows, rank)
        return cls(torch.zeros(rows // size, size, size))

    def adapted(self, layer: nn.Module, base: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        output = base(x)
        axis = -1 if is_linear(layer) else 1
        linear = output
        if layer.bias is not None:
            assert isinstance(layer.bias, Tensor)
            bias = dense(layer.bias).to(output.dtype)
            ones = (1 for _ in range(output.dim() - 2)) if axis == 1 else ()
            linear = output - bias.reshape(-1, *ones)
        return output + self._turned(linear, axis)

    def merged(self, weight: Tensor) -> Tensor:
        weight = weight.to(self.blocks.dtype)
        return weight + self._turned(weight, 0)

    def difference(self, weight: Tensor | None = None) -> Tensor:
        if weight is None:
            raise ValueError("OFT's difference depends on the weight.")
        return self._turned(weight.to(self.blocks.dtype), 0)

    def rotations(self) -> Tensor:
        """R, (number of blocks, block size, block size)."""
        return _identity(self.blocks) + self._turn()

    def tensors(self) -> dict[str, Tensor]:
        constraint = {} if self.constraint is None else {"alpha": torch.tensor(float(self.constraint))}
        return {"oft_blocks": saved(self.blocks), **constraint}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], alpha: float | None) -> "OFT | None":
        if set(tensors) != {"oft_blocks"} or tensors["oft_blocks"].dim() != 3:
            return None
        return cls(tensors["oft_blocks"], alpha if alpha else None)

    def _turn(self) -> Tensor:
        """R - I = 2 (I - Q)^-1 Q, exactly zero for Q = 0."""
        skew = self.blocks - self.blocks.transpose(1, 2)
        if self.constraint is not None:
            skew = skew * (self.constraint / (skew.norm() + 1e-8)).clamp(max=1)
        return solve(_identity(skew) - skew, 2 * skew)

    def _turned(self, x: Tensor, axis: int) -> Tensor:
        """(R - I)^T times x over the axis of the output channels."""
        number, size, _ = self.blocks.shape
        x = x.movedim(axis, -1).unflatten(-1, (number, size))
        return torch.einsum("knm,...kn->...km", self._turn().to(x.dtype), x).flatten(-2).movedim(-1, axis)


def _identity(blocks: Tensor) -> Tensor:
    return torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
