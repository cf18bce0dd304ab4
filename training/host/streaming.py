"""Weights streamed from RAM, for a base model that does not fit the GPU.

The frozen weights of the repeated blocks stay in RAM. A block's weights are sent to the device while the previous
block computes, both in the forward pass and in the recomputation by checkpointing, and are freed after the block's
forward or backward computation. So at most two streamed blocks are on the device at a time.

RAM holds no second copy: the streamed weights are the MODEL's own memory (or mapped file) if their number format fits
(see `twin_of`). Only pinned memory can be sent while the GPU computes, so a block's weights are first gathered into
one of two pinned buffers. That costs one copy per byte on the processor, in parallel to the GPU. Pinning a copy of the
model would save it but take the model's size in RAM again; pinning the MODEL's memory itself fails on the read-only
file mappings that the host loads by default.
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

from .blocks import checkpoint_blocks, repeated_blocks
from .quantise import AS_LOADED, in_fp8, is_host_linear, is_quantised
from .tensors import is_packed

ALIGNMENT = 256
"""Bytes: each tensor in a block's memory starts at a multiple of it, as kernels need."""


@dataclass(frozen=True)
class Streamed:
    """Result of `stream_blocks`."""

    blocks: tuple[str, ...]
    """Names of all repeated blocks; each is checkpointed."""
    streamed: tuple[str, ...]
    """Names of the blocks whose weights stay in RAM; empty if all fit the device."""
    streamed_bytes: int
    """Bytes of their weights."""
    resident_bytes: int
    """Bytes of the other blocks' weights."""
    is_pinned: bool
    """Whether the buffers are pinned memory, so that weights are sent while the device computes."""


def stream_blocks(twin: Any, resident_bytes: int, draws: bool = False) -> Streamed:
    """Checkpoints the repeated blocks, and streams the weights of those that do not fit the device.

    Args:
        twin: from `trainable_twin(..., in_ram=True)`; its blocks are changed in place.
        resident_bytes: limit for the blocks' weights on the device at any time, including two streamed blocks. If it
            is less than these two, every block is streamed. Norms and biases do not count.
        draws: as of `checkpoint_blocks`.
    """
    device = torch.device(twin.device)
    blocks = {name: _Block(block) for name, block in repeated_blocks(twin)}
    sizes = [block.size for block in blocks.values()]
    is_streamed = dict(zip(blocks, spread(sizes, resident_bytes), strict=True))
    for name, block in blocks.items():
        if not is_streamed[name]:
            block.move_to(device)
    streamed = [name for name in blocks if is_streamed[name]]
    stream = _Stream(device, [blocks[name] for name in streamed])
    contexts = {name: partial(stream.on_device, number) for number, name in enumerate(streamed)}
    checkpoint_blocks(twin, contexts, draws)
    streamed_bytes = sum(blocks[name].size for name in streamed)
    return Streamed(tuple(blocks), tuple(streamed), streamed_bytes, sum(sizes) - streamed_bytes, stream.is_pinned)


def weight_bytes(model: Any, dtype: torch.dtype, base_precision: str = AS_LOADED) -> int:
    """Bytes of all weights that a twin of MODEL would have; arguments as for `trainable_twin`."""
    blocks = repeated_blocks(model.model)
    in_8_bit = {id(part) for _, block in blocks for part in block.modules()} if in_fp8(base_precision) else set()
    total = 0
    for module in model.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if is_quantised(parameter) or not parameter.is_floating_point():
                total += parameter.nbytes
            else:
                is_fp8 = id(module) in in_8_bit and name == "weight" and is_host_linear(module)
                total += parameter.numel() * (1 if is_fp8 else dtype.itemsize)
    return total


def free_bytes(device: torch.device) -> int:
    """Free memory of the device."""
    return comfy.model_management.get_free_memory(device)


def spread(sizes: Sequence[int], resident_bytes: int) -> list[bool]:
    """Whether each block is streamed: as few as possible, spaced evenly, so that there is time to send each.

    Args:
        sizes: bytes of each block, in the order of the forward pass.
        resident_bytes: see `stream_blocks`.
    """
    total = sum(sizes)
    if total <= resident_bytes:
        return [False for _ in sizes]
    room = max(0, resident_bytes - 2 * max(sizes))
    is_streamed, seen, resident = [], 0, 0
    for size in sizes:
        seen += size
        stays = size == 0 or (resident + size) * total <= room * seen
        resident += size if stays else 0
        is_streamed.append(not stays)
    return is_streamed


def streamable(block: nn.Module) -> list[tuple[nn.Module, str]]:
    """The weights of a block that can be streamed, as (module, name of the parameter).

    Not among them are: one-dimensional parameters (norms, biases), which are small; blocks that are a single layer,
    whose weight an adapter may read outside of the block's forward; tensor classes of other nodes.
    """
    if not any(True for _ in block.children()):
        return []
    return [
        (module, name)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() > 1 and not is_packed(parameter)
    ]


class _Weight:
    """One parameter of a block in RAM, and the modules that share it."""

    def __init__(self, source: nn.Parameter):
        self.source = source
        self.owners: list[tuple[weakref.ref[nn.Module], str]] = []
        self.names: Sequence[str] = ()
        self.context: Any = None
        self.parts: list[Tensor] = [source.detach()]
        if is_traceable_wrapper_subclass(source):  # quantised: integers and scales
            self.names, self.context = source.__tensor_flatten__()
            self.parts = [getattr(source, name) for name in self.names]

    def put(self, parameter: nn.Parameter) -> None:
        """Makes the modules use this parameter."""
        for module, name in self.owners:
            owner = module()
            if owner is not None:
                owner._parameters[name] = parameter

    def joined(self, parts: Sequence[Tensor]) -> nn.Parameter:
        """A parameter made of these parts."""
        whole: Any = parts[0]
        if self.names:
            shape, stride = self.source.shape, self.source.stride()
            inner = dict(zip(self.names, parts, strict=True))
            whole = type(self.source).__tensor_unflatten__(inner, self.context, shape, stride)  # pyright: ignore
        return nn.Parameter(whole, requires_grad=False)


class _Block:
    """A block's weights in RAM, and their offsets in one contiguous piece of memory."""

    def __init__(self, block: nn.Module):
        found: dict[int, _Weight] = {}
        for module, name in streamable(block):
            parameter: Any = module._parameters[name]
            if id(parameter) not in found:
                source = parameter if parameter.device.type == "cpu" else nn.Parameter(parameter.cpu(), False)
                found[id(parameter)] = _Weight(source)
            found[id(parameter)].owners.append((weakref.ref(module), name))
        self.weights = list(found.values())
        self.offsets: list[int] = []
        self.size = 0
        for part in self._parts():
            self.offsets.append(self.size)
            self.size += -(-part.nbytes // ALIGNMENT) * ALIGNMENT
        self.use_ram()

    def _parts(self) -> Iterator[Tensor]:
        return (part for weight in self.weights for part in weight.parts)

    def gather(self, memory: Tensor) -> None:
        """Copies all weights into `memory`: (size,) uint8."""
        for view, part in zip(self._views(memory), self._parts(), strict=True):
            if part.is_contiguous():  # copied as bytes, which is fast for every number format
                view.view(-1).view(torch.uint8).copy_(part.view(-1).view(torch.uint8))
            else:
                view.copy_(part)

    def use(self, memory: Tensor) -> None:
        """Makes the block's modules use the weights in `memory`, a copy of what `gather` filled."""
        views = self._views(memory)
        for weight in self.weights:
            weight.put(weight.joined([next(views) for _ in weight.parts]))

    def use_ram(self) -> None:
        """Makes the block's modules use the weights in RAM."""
        for weight in self.weights:
            weight.put(weight.source)

    def move_to(self, device: torch.device) -> None:
        """Makes the block's modules use copies of the weights on the device, for the whole run."""
        with torch.inference_mode(False), torch.no_grad():
            for weight in self.weights:
                weight.put(weight.joined([part.to(device, copy=True) for part in weight.parts]))

    def _views(self, memory: Tensor) -> Iterator[Tensor]:
        for offset, part in zip(self.offsets, self._parts(), strict=True):
            yield memory[offset : offset + part.nbytes].view(part.dtype).view(part.shape)


@dataclass
class _Arrival:
    """A block's weights that are on the device or are being sent there."""

    memory: Tensor
    computing: Any = None
    """CUDA stream on which the memory was allocated, and is freed."""
    sent: Any = None
    """CUDA event that marks the end of the transfer."""


class _Buffer:
    """Memory from which a block is sent: pinned if the system allows it; else transfers and computing alternate."""

    def __init__(self, size: int):
        try:
            self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            self.memory = torch.empty(size, dtype=torch.uint8)
        self.sent = torch.cuda.Event()


class _Stream:
    """Sends blocks' weights to the device and frees them there.

    On CUDA transfers run on a stream of their own. Memory is allocated and freed in the order of the computing stream:
    a transfer waits for everything computed before it was requested, as its memory may just have been freed, and
    computing waits for the transfer. `record_stream` alone would be safe too, but it delays the freeing while the
    processor runs ahead, and would take the memory of many blocks.

    Args:
        device: on which the blocks compute.
        blocks: the streamed ones.
    """

    def __init__(self, device: torch.device, blocks: Sequence[_Block]):
        self.device = device
        self.blocks = blocks
        self.arrivals: dict[int, _Arrival] = {}
        self.last = (-1, -1)
        self.after: dict[tuple[int, int], int] = {}
        """(block before, block) -> the block that followed last time, to be sent ahead"""
        self.side: Any = None
        self.buffers: list[_Buffer] = []
        if device.type == "cuda" and blocks:
            self.side = torch.cuda.Stream(device)
            with torch.inference_mode(False):
                self.buffers = [_Buffer(max(block.size for block in blocks)) for _ in range(2)]
        weakref.finalize(self, _finish_transfers, self.side, self.arrivals).atexit = False

    @property
    def is_pinned(self) -> bool:
        return bool(self.buffers) and all(buffer.memory.is_pinned() for buffer in self.buffers)

    @contextmanager
    def on_device(self, number: int) -> Iterator[None]:
        """The block's modules use weights on the device while the context lasts.

        Raises:
            RuntimeError: a CUDA graph is being captured; its replays would not send any weights.
        """
        if self.side is not None and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("A CUDA graph cannot hold weights that are streamed: run the steps eagerly.")
        upcoming = self._upcoming(number)
        for other in self.arrivals.keys() - {number}:
            self._drop(other)
        for wanted in (number, upcoming):
            if wanted not in self.arrivals:
                self._send(wanted)
        block = self.blocks[number]
        try:
            with torch.inference_mode(False), torch.no_grad():
                block.use(self._arrived(number))
            yield
        finally:
            block.use_ram()
            if upcoming != number:
                self._drop(number)

    def _upcoming(self, number: int) -> int:
        """The block that is expected next: as last time, or at first the next one in the same direction."""
        self.after[self.last] = number
        before, self.last = self.last[1], (self.last[1], number)
        # A block that runs twice in a row is the last one: its recomputation follows its forward pass.
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
        self.arrivals[number] = arrival

    def _arrived(self, number: int) -> Tensor:
        """The block's memory on the device; later work on the current stream waits for the transfer."""
        arrival = self.arrivals[number]
        if arrival.sent is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(arrival.sent)
            if computing != arrival.computing:
                arrival.memory.record_stream(computing)
        return arrival.memory

    def _drop(self, number: int) -> None:
        arrival = self.arrivals.pop(number)
        if arrival.sent is not None:  # even if unused: the memory's next user must wait for the transfer
            arrival.computing.wait_event(arrival.sent)


def memory_for(size: int, device: torch.device) -> Tensor:
    """Allocates (size,) uint8 on the device."""
    return torch.empty(size, dtype=torch.uint8, device=device)


def _finish_transfers(side: Any, arrivals: dict[int, _Arrival]) -> None:
    """Called when a twin is freed, even after an error: waits for transfers before their memory is freed."""
    if side is not None:
        side.synchronize()
    arrivals.clear()
