"""Layers that read the same tensor, such as the queries, keys and values of an attention, computed together."""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from . import Adapter, LoRA
from .base import is_linear
from .fused_linear import Joined, LowRankLinears
from .products import PLAIN, LayerProducts

LARGEST_GROUP = 64 * 2**20
"""Bytes of weights that one group may have; larger groups are no faster."""


class AdaptedForward:
    """Replaces a layer's forward: the layer with its adapter on.

    Args:
        products: multiply by the layer's weight.
    """

    def __init__(self, layer: Any, adapter: Adapter, products: LayerProducts = PLAIN):
        self.layer, self.adapter, self.products = layer, adapter, products
        self.base = layer.forward
        self.is_plain = products.is_plain(layer)
        self.watch: Callable[[AdaptedForward, Tensor], None] | None = None
        """called with each input of the layer"""
        self.shared: SharedInput | None = None
        """the layers that it is computed with; None: computed alone"""

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.is_plain and not args and not kwargs:
            if self.watch is not None:
                self.watch(self, x)
            output = None if self.shared is None else self.shared.output(self, x)
            if output is None:
                output = self.adapter.fused(self.layer, x, self.products)
            if output is not None:
                return output
        return self.adapter(self.layer, lambda scaled: self.base(scaled, *args, **kwargs), x)


class SharedInput:
    """Layers that read one tensor: the first to be called computes the outputs of all, and the others fetch theirs.

    Args:
        members: of one shape, with LoRAs of one rank and scale that lie side by side in memory (see `flat`), in that
            order. Their weights become views of one tensor.
    """

    def __init__(self, members: Sequence[AdaptedForward]):
        self.members = list(members)
        self.layers = _joined(self.members)
        self._read: tuple[Tensor, int] | None = None
        """the tensor last read, and its version"""
        self._outputs: dict[AdaptedForward, Tensor] = {}
        """computed from it and not fetched yet"""

    def output(self, member: AdaptedForward, x: Tensor) -> Tensor | None:
        """A member's output for x: (..., in) -> (..., out); None where it must be computed alone."""
        if not self._is_same(x) or member not in self._outputs:
            if x.dim() < 2 or not all(_can_fuse(each, x) for each in self.members):
                return None
            ranks = [each.adapter.dropped.ranks for each in self.members]
            dropped = [each for each in ranks if each is not None]
            if 0 < len(dropped) < len(ranks):
                return None
            joined = torch.cat(dropped) if dropped else None
            rows = LowRankLinears.apply(x.flatten(0, -2), _down(self.members[0]), self.layers, joined)
            shape = *x.shape[:-1], -1
            self._outputs = {each: part.view(shape) for each, part in zip(self.members, rows, strict=True)}  # pyright: ignore
            self._read = x, x._version
        output = self._outputs.pop(member)
        if not self._outputs:
            self._read = None
        return output

    def forget(self) -> None:
        """Drops outputs that were not fetched, as an aborted pass leaves them."""
        self._read = None
        self._outputs = {}

    def _is_same(self, x: Tensor) -> bool:
        return self._read is not None and x is self._read[0] and x._version == self._read[1]


class Readers:
    """Records which layers have read which tensor, without keeping the tensors alive."""

    def __init__(self) -> None:
        self._by_tensor: dict[int, tuple[weakref.ref[Tensor], list[AdaptedForward]]] = {}
        self._all: list[list[AdaptedForward]] = []

    def __call__(self, reader: AdaptedForward, x: Tensor) -> None:
        seen = self._by_tensor.get(id(x))
        if seen is None or seen[0]() is not x:
            seen = weakref.ref(x), []
            self._by_tensor[id(x)] = seen
            self._all.append(seen[1])
        seen[1].append(reader)

    def groups(self, together: Callable[[AdaptedForward], Any]) -> list[list[AdaptedForward]]:
        """Layers to compute together, at least two in a group; a layer is in one group at most.

        Args:
            together: a layer's key; only layers with equal keys may be in one group.
        """
        found, taken = [], set()
        for readers in self._all:
            alone = [each for each in dict.fromkeys(readers) if each not in taken and _can_be_joined(each)]
            for group in _neighbours(alone, together):
                if len(group) > 1:
                    found.append(group)
                    taken.update(group)
        return found


@contextmanager
def watched(forwards: Iterable[AdaptedForward]) -> Iterator[Readers]:
    """Records the inputs of the layers within the context."""
    readers, forwards = Readers(), list(forwards)
    for each in forwards:
        each.watch = readers
    try:
        yield readers
    finally:
        for each in forwards:
            each.watch = None


def share(group: Sequence[AdaptedForward]) -> SharedInput:
    """Lets the layers be computed together from now on."""
    shared = SharedInput(group)
    for each in group:
        each.shared = shared
    return shared


def unshare(forwards: Iterable[AdaptedForward]) -> None:
    """Lets each layer be computed by itself again; the weights remain views of one tensor."""
    for each in forwards:
        each.shared = None


def block_names(blocks: Iterable[str], forwards: Mapping[str, AdaptedForward]) -> dict[AdaptedForward, str]:
    """The block of each layer; "" where it is in none.

    Args:
        blocks: names of modules.
        forwards: by the state-dict key of the layer's weight.
    """
    prefixes = [f"{block}." for block in blocks]
    return {each: next(filter(key.startswith, prefixes), "") for key, each in forwards.items()}


def _can_fuse(member: AdaptedForward, x: Tensor) -> bool:
    adapter = member.adapter
    return type(adapter) is LoRA and adapter.can_fuse(member.layer, x, member.products)


def _can_be_joined(reader: AdaptedForward) -> bool:
    layer, adapter = reader.layer, reader.adapter
    if not (is_linear(layer) and type(adapter) is LoRA and adapter.down.grad is not None):
        return False
    is_plain = type(layer.weight) in (Tensor, nn.Parameter) and not reader.products.is_quantised(layer.weight)
    return is_plain and layer.weight.dtype == adapter.copies.get("down", adapter.down).dtype


def _neighbours(
    readers: Iterable[AdaptedForward], together: Callable[[AdaptedForward], Any]
) -> Iterator[list[AdaptedForward]]:
    """The readers in groups of equal form and key whose LoRAs lie side by side, of at most LARGEST_GROUP bytes."""
    ordered = sorted(readers, key=lambda each: _down(each).data_ptr())
    run = ordered[:1]
    for before, each in pairwise(ordered):
        is_full = (len(run) + 1) * each.layer.weight.nbytes > LARGEST_GROUP
        if is_full or together(before) != together(each) or not _follows(before, each):
            yield run
            run = []
        run.append(each)
    yield run


def _follows(before: AdaptedForward, each: AdaptedForward) -> bool:
    """Whether a layer has the form of the one before it, and its LoRA lies directly behind the other's in memory."""
    return _form(before) == _form(each) and all(
        first.data_ptr() + first.nbytes == second.data_ptr()
        for first, second in zip(before.adapter.parameters(), each.adapter.parameters(), strict=True)
    )


def _form(reader: AdaptedForward) -> tuple[Any, ...]:
    layer, adapter = reader.layer, reader.adapter
    weight, bias = layer.weight, layer.bias
    return weight.shape, weight.dtype, weight.device, None if bias is None else bias.dtype, adapter.rank, adapter.scale


def _down(reader: AdaptedForward) -> Tensor:
    return reader.adapter.down  # pyright: ignore


def _joined(members: Sequence[AdaptedForward]) -> Joined:
    """The members as one; their weights become views of one tensor, their biases of another."""
    weight, bias = (_side_by_side(members, name) for name in ("weight", "bias"))
    assert weight is not None
    number, adapter = len(members), members[0].adapter
    rank, (features, width) = adapter.rank, members[0].layer.weight.shape

    def as_one(first: Tensor, *shape: int) -> Tensor:
        strides = [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size)
        return first.detach().as_strided(shape, strides)

    down, up = ((getattr(adapter, name), adapter.copies.get(name)) for name in ("down", "up"))
    return Joined(
        weight=weight,
        bias=bias,
        down=as_one(down[0] if down[1] is None else down[1], number * rank, width),
        up=as_one(up[0] if up[1] is None else up[1], number, features, rank),
        down_gradient=as_one(down[0].grad, number * rank, width),
        up_gradient=as_one(up[0].grad, number, features, rank),
        scale=adapter.scale,
    )


def _side_by_side(members: Sequence[AdaptedForward], name: str) -> Tensor | None:
    tensors = [getattr(each.layer, name) for each in members]
    if tensors[0] is None:
        return None
    with torch.inference_mode(False), torch.no_grad():
        joined = torch.cat([each.detach() for each in tensors])
        for own, part in zip(tensors, joined.split(tensors[0].shape[0]), strict=True):
            own.data = part
    return joined
