"""Weights streamed from RAM, for a base model that does not fit the GPU.

The frozen weights of the repeated blocks wait in RAM. A block's weights come to the device just before it runs, in
the forward pass and in the recomputation that checkpointing makes of it in the backward pass, while the block before
it computes; they go after it, or after its part of the backward pass. So at most two streamed blocks are on the
device at any moment.

In RAM nothing is doubled: what waits is the MODEL's own memory wherever its number format fits (see `twin_of`), be it
memory or a mapped file. Only pinned memory can be sent beside computing, so a block's weights are gathered into one
of two pinned buffers of a block's size, and sent from there in one piece. That costs the processor one copy of every
byte sent, while the GPU computes. Pinning a copy of the model instead would save that, and take its size of RAM
again; pinning the MODEL's memory where it lies fails on the read-only file mappings that the host loads by default.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .blocks import checkpoint_blocks, repeated_blocks, streamable
from .quantise import AS_LOADED, in_fp8, is_linear, is_quantised

ALIGNMENT = 256
"""bytes; where a tensor begins in a block's memory, as kernels want it"""


@dataclass(frozen=True)
class Streamed:
    """What `stream_blocks` did."""

    blocks: tuple[str, ...]
    """all repeated blocks; each is checkpointed"""
    streamed: tuple[str, ...]
    """those whose weights come from RAM; none where all fit"""
    streamed_bytes: int
    """of their weights"""
    resident_bytes: int
    """of the other blocks' weights"""
    is_pinned: bool
    """whether they are sent while the device computes"""


def stream_blocks(twin: Any, resident_bytes: int) -> Streamed:
    """Checkpoints the repeated blocks, and streams the weights of those that do not fit the device.

    Args:
        twin: from `trainable_view(..., in_ram=True)`; its blocks are changed for good.
        resident_bytes: what the blocks' weights may take of the device at any moment, the two places of streamed
            blocks included. Below these two places every block is streamed. Norms and biases do not count.
    """
    device = torch.device(twin.device)
    blocks = {name: _Block(block) for name, block in repeated_blocks(twin)}
    sizes = [block.size for block in blocks.values()]
    is_streamed = dict(zip(blocks, spread(sizes, resident_bytes), strict=True))
    for name, block in blocks.items():
        if not is_streamed[name]:
            block.settle(device)
    streamed = [name for name in blocks if is_streamed[name]]
    stream = _Stream(device, [blocks[name] for name in streamed])
    checkpoint_blocks(twin, {name: partial(stream.present, number) for number, name in enumerate(streamed)})
    streamed_bytes = sum(blocks[name].size for name in streamed)
    return Streamed(tuple(blocks), tuple(streamed), streamed_bytes, sum(sizes) - streamed_bytes, stream.is_pinned)


def weight_bytes(model: Any, dtype: torch.dtype, base_precision: str = AS_LOADED) -> int:
    """What all weights of a twin of MODEL take, to know beforehand whether they fit; see `trainable_view`."""
    blocks = repeated_blocks(model.model)
    smaller = {id(part) for _, block in blocks for part in block.modules()} if in_fp8(base_precision) else set()
    total = 0
    for module in model.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if is_quantised(parameter) or not parameter.is_floating_point():
                total += parameter.nbytes
            else:
                is_fp8 = id(module) in smaller and name == "weight" and is_linear(module)
                total += parameter.numel() * (1 if is_fp8 else dtype.itemsize)
    return total


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses."""
    return comfy.model_management.get_free_memory(device)


def spread(sizes: Sequence[int], resident_bytes: int) -> list[bool]:
    """Which blocks are streamed: as few as can be, evenly among the others, so that each has time to arrive.

    Args:
        sizes: bytes of each block, in order of use.
        resident_bytes: see `stream_blocks`.
    """
    total = sum(sizes)
    if total <= resident_bytes:
        return [False for _ in sizes]
    room = max(0, resident_bytes - 2 * max(sizes))
    is_streamed, seen, kept = [], 0, 0
    for size in sizes:
        seen += size
        stays = size == 0 or (kept + size) * total <= room * seen
        kept += size if stays else 0
        is_streamed.append(not stays)
    return is_streamed


class _Weight:
    """One tensor of a block in RAM, and the modules that have it."""

    def __init__(self, source: nn.Parameter):
        self.source = source
        self.places: list[tuple[weakref.ref[nn.Module], str]] = []
        self.names: Sequence[str] = ()
        self.context: Any = None
        self.parts: list[Tensor] = [source.detach()]
        if is_traceable_wrapper_subclass(source):  # quantised: its data and its scales
            self.names, self.context = source.__tensor_flatten__()
            self.parts = [getattr(source, name) for name in self.names]

    def put(self, parameter: nn.Parameter) -> None:
        """Gives the modules this tensor."""
        for module, name in self.places:
            owner = module()
            if owner is not None:
                owner._parameters[name] = parameter

    def joined(self, parts: Sequence[Tensor]) -> nn.Parameter:
        """The tensor of these parts."""
        whole: Any = parts[0]
        if self.names:
            shape, stride = self.source.shape, self.source.stride()
            inner = dict(zip(self.names, parts, strict=True))
            whole = type(self.source).__tensor_unflatten__(inner, self.context, shape, stride)  # pyright: ignore
        return nn.Parameter(whole, requires_grad=False)


class _Block:
    """A block's weights in RAM, and how they lie in one piece of memory."""

    def __init__(self, block: nn.Module):
        found: dict[int, _Weight] = {}
        for module, name in streamable(block):
            parameter: Any = module._parameters[name]
            if id(parameter) not in found:
                source = parameter if parameter.device.type == "cpu" else nn.Parameter(parameter.cpu(), False)
                found[id(parameter)] = _Weight(source)
            found[id(parameter)].places.append((weakref.ref(module), name))
        self.weights = list(found.values())
        self.offsets: list[int] = []
        self.size = 0
        for part in self._parts():
            self.offsets.append(self.size)
            self.size += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        self.leave()

    def _parts(self) -> Iterator[Tensor]:
        return (part for weight in self.weights for part in weight.parts)

    def gather(self, memory: Tensor) -> None:
        """Copies all weights into memory: (size,) uint8."""
        for place, part in zip(self._places(memory), self._parts(), strict=True):
            if part.is_contiguous():  # as bytes: whatever the number format, it is the same fast copy
                place.view(-1).view(torch.uint8).copy_(part.view(-1).view(torch.uint8))
            else:
                place.copy_(part)

    def enter(self, memory: Tensor) -> None:
        """Lets the block's modules have their weights where `memory`, gathered, has them."""
        places = iter(list(self._places(memory)))
        for weight in self.weights:
            weight.put(weight.joined([next(places) for _ in weight.parts]))

    def leave(self) -> None:
        """Lets the block's modules have the weights in RAM."""
        for weight in self.weights:
            weight.put(weight.source)

    def settle(self, device: torch.device) -> None:
        """Moves the weights to the device for good."""
        with torch.inference_mode(False), torch.no_grad():
            for weight in self.weights:
                weight.put(weight.joined([part.to(device, copy=True) for part in weight.parts]))

    def _places(self, memory: Tensor) -> Iterator[Tensor]:
        for offset, part in zip(self.offsets, self._parts(), strict=True):
            yield memory[offset : offset + part.nbytes].view(part.dtype).view(part.shape)


@dataclass
class _Arrival:
    """A block's weights on the device, or on their way to it."""

    memory: Tensor
    computing: Any = None
    """the CUDA stream in whose order the memory was taken and is given back"""
    sent: Any = None
    """the CUDA event of the last byte"""


class _Buffer:
    """Memory from which a block is sent.

    Pinned, where the system allows: else sending waits for computing and computing for sending.
    """

    def __init__(self, size: int):
        try:
            self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            self.memory = torch.empty(size, dtype=torch.uint8)
        self.sent = torch.cuda.Event()


class _Stream:
    """Sends blocks' weights to the device and lets them go.

    On CUDA the bytes go by a stream of their own. Memory is taken and given back in the order of the computing stream:
    a transfer first waits for what was computed before it was asked for, as its place may be one just given back, and
    computing waits for the transfer. `record_stream` alone would be safe too, but it holds places back while the
    processor runs ahead, and so takes the memory of many blocks.

    Args:
        device: where the blocks compute.
        blocks: those that are streamed.
    """

    def __init__(self, device: torch.device, blocks: Sequence[_Block]):
        self.device = device
        self.blocks = blocks
        self.here: dict[int, _Arrival] = {}
        self.last = (-1, -1)
        self.after: dict[tuple[int, int], int] = {}
        """the block that came last time after these two: what to send ahead, whatever the model's order is"""
        self.side: Any = None
        self.buffers: list[_Buffer] = []
        if device.type == "cuda" and blocks:
            self.side = torch.cuda.Stream(device)
            with torch.inference_mode(False):
                self.buffers = [_Buffer(max(block.size for block in blocks)) for _ in range(2)]
        weakref.finalize(self, _let_go, self.side, self.here).atexit = False

    @property
    def is_pinned(self) -> bool:
        return bool(self.buffers) and all(buffer.memory.is_pinned() for buffer in self.buffers)

    @contextmanager
    def present(self, number: int) -> Iterator[None]:
        """The block's modules have their weights on the device while the context lasts.

        Raises:
            RuntimeError: a CUDA graph is being captured, in which what happens here would happen once only.
        """
        if self.side is not None and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("A CUDA graph cannot hold weights that are streamed: run the steps eagerly.")
        upcoming = self._upcoming(number)
        for other in self.here.keys() - {number}:
            self._drop(other)
        for wanted in (number, upcoming):
            if wanted not in self.here:
                self._send(wanted)
        block = self.blocks[number]
        try:
            with torch.inference_mode(False), torch.no_grad():
                block.enter(self._arrived(number))
            yield
        finally:
            block.leave()
            if upcoming != number:
                self._drop(number)

    def _upcoming(self, number: int) -> int:
        """The block that will be used next: the one of last time, at first the next in the same direction."""
        self.after[self.last] = number
        before, self.last = self.last[1], (self.last[1], number)
        # A block that is used twice running is the last one: its recomputation follows on its forward pass.
        ahead = number + 1 if before < number else number - 1
        guess = ahead if 0 <= ahead < len(self.blocks) else number
        return self.after.get(self.last, guess)

    def _send(self, number: int) -> None:
        block = self.blocks[number]
        with torch.inference_mode(False), torch.no_grad():
            arrival = _Arrival(memory_for(block.size, self.device))
            if self.side is None:
                block.gather(arrival.memory)
            else:
                buffer = self.buffers[0]
                self.buffers.reverse()
                buffer.sent.synchronize()
                block.gather(buffer.memory)
                arrival.computing = torch.cuda.current_stream(self.device)
                self.side.wait_stream(arrival.computing)
                with torch.cuda.stream(self.side):
                    arrival.memory.copy_(buffer.memory[: block.size], non_blocking=True)
                    buffer.sent.record(self.side)
                    arrival.sent = self.side.record_event()
        self.here[number] = arrival

    def _arrived(self, number: int) -> Tensor:
        """The block's memory on the device; what computes from now on waits until it is filled."""
        arrival = self.here[number]
        if arrival.sent is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(arrival.sent)
            if computing != arrival.computing:
                arrival.memory.record_stream(computing)
        return arrival.memory

    def _drop(self, number: int) -> None:
        arrival = self.here.pop(number)
        if arrival.sent is not None:  # if it was sent for nothing: the memory's next user must not overtake it
            arrival.computing.wait_event(arrival.sent)


def memory_for(size: int, device: torch.device) -> Tensor:
    """Memory on the device: (size,) uint8."""
    return torch.empty(size, dtype=torch.uint8, device=device)


def _let_go(side: Any, here: dict[int, _Arrival]) -> None:
    """When a twin goes, in whatever state it was: no transfer may still run when its memory is given back."""
    if side is not None:
        side.synchronize()
    here.clear()
