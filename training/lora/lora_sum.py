"""The weighted sum of several LoRAs on one layer after another."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor

from ..adapters import LoRA, adapter_from_tensors
from ..basics.errors import raise_if_any
from ..host import LayerNames
from .keys import ALPHA, CHANGES, DOWN, UP
from .low_rank import Factors, concatenated, factorised, reduced

SUBJECT = "Merge and Resize LoRAs"
ADDED = {"diff": "diff", "w_norm": "diff", "diff_b": "diff_b", "b_norm": "diff_b"}
"""Entries that are differences -> their name in the merged LoRA."""
Entries = Mapping[str, Tensor]
"""Entry (such as lora_down.weight) -> tensor, of one layer."""


@dataclass
class LoRASum:
    """Accumulates the merged LoRA, layer by layer."""

    limit: int
    """Highest rank of a layer; 0 = no limit."""
    device: torch.device
    """Device to compute on; results are stored on the CPU."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    """By layer, as are the next two."""
    alphas: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    """Frobenius norm of the part lost to the rank limit, relative to the layer's difference."""
    unchanged_layers: int = 0
    """Layers copied from one LoRA."""
    _lost: float = 0.0
    _total: float = 0.0

    @property
    def error(self) -> float:
        """`errors` over all layers together."""
        return (self._lost / self._total) ** 0.5 if self._total else 0.0

    def add(self, layer: str, terms: Sequence[tuple[float, Entries]], names: LayerNames | None) -> None:
        """Adds one layer: the sum of weight * difference over the terms.

        Args:
            layer: kohya's name.
            terms: (weight, entries) of each LoRA that has the layer.
            names: for the weight's shape, if known.
        """
        if self.limit == 0 and len(terms) == 1 and terms[0][0] == 1.0:
            self._copy(layer, terms[0][1])
            return
        dtype = common_dtype(
            t.dtype for _, entries in terms for t in entries.values() if t.dim() and t.is_floating_point()
        )
        for entry, name in ADDED.items():
            for weight, entries in terms:
                if entry in entries and (name == "diff_b" or entries[entry].dim() < 2):
                    self._accumulate(f"{layer}.{name}", weight * entries[entry].float(), dtype)
        matrices, kernel = [], names.shape[2:] if names else ()
        for weight, entries in terms:
            if (matrix := difference_of(entries, self.device)) is not None:
                _check_shape(layer, matrix, names)
                matrices.append((weight, matrix))
                kernel = kernel or _kernel(entries)
        if matrices:
            self._store(layer, self._summed(layer, matrices), kernel, dtype)

    def _copy(self, layer: str, entries: Entries) -> None:
        self.tensors |= {f"{layer}.{entry}": tensor.detach().cpu() for entry, tensor in entries.items()}
        if set(entries) - set(CHANGES):
            self.unchanged_layers += 1
        if DOWN in entries:
            self.ranks[layer] = entries[DOWN].shape[0]
            self.alphas[layer] = float(entries[ALPHA]) if ALPHA in entries else float(self.ranks[layer])

    def _summed(self, layer: str, matrices: list[tuple[float, Factors | Tensor]]) -> Factors:
        factors = [(weight, matrix) for weight, matrix in matrices if isinstance(matrix, Factors)]
        if len(factors) == len(matrices):
            exact = concatenated(factors)
            if not self.limit or exact.rank <= self.limit:
                return exact
            result, singular = reduced(exact, self.limit)
        else:
            dense = sum(w * (m.up @ m.down if isinstance(m, Factors) else m) for w, m in matrices)
            assert isinstance(dense, Tensor)
            result, singular = factorised(dense, self.limit)
        squares = singular.cpu().double().square()
        lost, total = float(squares[result.rank :].sum()), float(squares.sum())
        if self.limit:
            self.errors[layer] = (lost / total) ** 0.5 if total else 0.0
        self._lost, self._total = self._lost + lost, self._total + total
        return result

    def _store(self, layer: str, factors: Factors, kernel: Sequence[int], dtype: torch.dtype) -> None:
        down = factors.down.reshape(factors.rank, -1, *kernel)
        up = factors.up.reshape(-1, factors.rank, *(1 for _ in kernel))
        self.tensors[f"{layer}.{DOWN}"] = _stored(down, dtype)
        self.tensors[f"{layer}.{UP}"] = _stored(up, dtype)
        self.tensors[f"{layer}.{ALPHA}"] = torch.tensor(float(factors.rank))
        self.ranks[layer], self.alphas[layer] = factors.rank, float(factors.rank)

    def _accumulate(self, key: str, difference: Tensor, dtype: torch.dtype) -> None:
        if key in self.tensors and self.tensors[key].shape != difference.shape:
            one, other = list(self.tensors[key].shape), list(difference.shape)
            raise_if_any(
                SUBJECT, [f"{key} is {one} in one LoRA and {other} in another: they are for different models."]
            )
        self.tensors[key] = _stored(
            difference.cpu() + self.tensors[key].float() if key in self.tensors else difference, dtype
        )


def difference_of(entries: Entries, device: torch.device) -> Factors | Tensor | None:
    """A layer's difference (out, in * prod(kernel)), float32: factors for a plain LoRA, else dense; or None."""
    if "diff" in entries:
        return entries["diff"].float().to(device).flatten(1) if entries["diff"].dim() > 1 else None
    tensors = adapter_entries(entries)
    if not tensors:
        return None
    adapter = adapter_from_tensors(tensors)
    assert adapter is not None  # unknown kinds are refused before
    if isinstance(adapter, LoRA) and adapter.kind == "lora":
        down, up = (t.detach().float().to(device).flatten(1) for t in (adapter.down, adapter.up))
        return Factors(up * (adapter.alpha / adapter.rank), down)
    return adapter.difference().detach().float().to(device).flatten(1)


def shape_of(matrix: Factors | Tensor) -> tuple[int, int]:
    """Rows and columns of a difference."""
    whole = (matrix.up.shape[0], matrix.down.shape[1]) if isinstance(matrix, Factors) else matrix.shape
    return whole[0], whole[1]


def _check_shape(layer: str, matrix: Factors | Tensor, names: LayerNames | None) -> None:
    if names is None or not names.shape or shape_of(matrix) == (names.shape[0], math.prod(names.shape[1:])):
        return
    rows, columns = shape_of(matrix)
    problem = f"{layer} is {rows} x {columns}, and not as the model has it: connect the model that the LoRAs are for."
    raise_if_any(SUBJECT, [problem])


def common_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """A number format that can hold all of several; 8-bit ones, which torch cannot promote, count as fp16."""
    wide = [torch.float16 if dtype.itemsize == 1 else dtype for dtype in dtypes]
    return reduce(torch.promote_types, wide or [torch.float32])


def _kernel(entries: Entries) -> tuple[int, ...]:
    """The kernel's shape of a convolution's adapter; () if its tensors do not show it."""
    return next((tuple(entries[name].shape[2:]) for name in (DOWN, "diff", "lokr_w2") if name in entries), ())


def adapter_entries(entries: Entries) -> dict[str, Tensor]:
    """The entries that belong to an adapter, without direct changes of weight or bias."""
    return {entry: tensor for entry, tensor in entries.items() if entry not in CHANGES}


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """On the CPU in `dtype`, or in float32 if `dtype` cannot hold the values."""
    cast = tensor.detach().to("cpu", dtype)
    return (cast if cast.isfinite().all() else tensor.detach().cpu().float()).contiguous()
