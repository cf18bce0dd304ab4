"""How a step is executed: op by op, or as a CUDA graph recorded once and replayed.

A small step is bound by Python and by kernel launches; a replayed graph needs neither. Either way it is the same step
with the same kernels.
"""

import contextlib
import ctypes
import dataclasses
import gc
import os
import traceback
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ..basics.pytree import form_of, tensors_of, with_tensors
from .batches import Batch
from .step import Step

MOST_GRAPHS = 48
"""Shapes of batches that are recorded; further ones go op by op."""


class Engine(Protocol):
    """Executes a step's parts in order: `accumulate` for each of its batches, then `move`."""

    @property
    def step(self) -> Step: ...

    def accumulate(self, batch: Batch) -> None: ...

    def move(self) -> None: ...

    def release(self) -> None:
        """Gives back memory that it holds to be faster."""


def uses_cudas_allocator() -> bool:
    """Whether torch was started with cudaMallocAsync, as ComfyUI starts it by default.

    A recording that a CUDA error breaks off cannot give its memory back then, and torch ends the whole process:
    record only what is known to go.
    """
    return torch.cuda.get_allocator_backend() == "cudaMallocAsync"


class EagerEngine:
    """Op by op."""

    def __init__(self, step: Step):
        self.step = step

    def accumulate(self, batch: Batch) -> None:
        """See `Step.accumulate`."""
        self.step.accumulate(batch)

    def move(self) -> None:
        """See `Step.move`."""
        self.step.move()

    def release(self) -> None:
        """There is nothing to give back."""


class GraphEngine:
    """As CUDA graphs: one for each shape of batch, and one for the move. The first time each goes op by op.

    Args:
        say: called once with a sentence, where a part of the step cannot be captured.
        interrupts: exceptions by which a user stops a run; a capture passes them on.
    """

    def __init__(self, step: Step, say: Callable[[str], None], interrupts: tuple[type[BaseException], ...] = ()):
        self.step = step
        self.say = say
        self.interrupts = interrupts
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[Hashable] = set()
        self._move: torch.cuda.CUDAGraph | None = None
        self._has_moved = False
        self.is_recording = not _KEPT
        """False once something could not be recorded: from then on all goes op by op"""
        if _KEPT:
            self.say(f"The step goes op by op, which is slower, until ComfyUI is restarted: {_BROKEN_BEFORE}")

    @property
    def graphs(self) -> int:
        """Shapes of batches recorded so far."""
        return len(self._graphs)

    def accumulate(self, batch: Batch) -> None:
        """See `Step.accumulate`."""
        graph, tensors = self._graph_for(batch)
        if graph is None:
            self.step.accumulate(batch)
        else:
            graph.replay(tensors)

    def move(self) -> None:
        """See `Step.move`."""
        if self._move is None and self._has_moved and self.is_recording:
            self._move = self._record(self.step.move)
        self._has_moved = True
        if self._move is None:
            self.step.move()
        else:
            _replay(self._move)

    def release(self) -> None:
        """Drops all graphs and their memory; they are recorded anew when they are wanted again."""
        with contextlib.suppress(RuntimeError):  # after a CUDA error, which was raised where it was met
            torch.cuda.synchronize()
        self._graphs.clear()
        self._seen.clear()
        self._move = None
        self._pool = torch.cuda.graph_pool_handle()
        if uses_cudas_allocator():
            _trim_graph_memory(self.step.loss.device)

    def _graph_for(self, batch: Batch) -> "tuple[_Graph | None, list[Tensor]]":
        """The graph of the batch's form, recorded when the form comes for the second time, and the batch's tensors."""
        is_in_groups = isinstance(batch.cond, list) and len(batch.cond) > 1  # rows are picked by lists then
        if is_in_groups or not (self.is_recording or self._graphs):
            return None, []
        try:
            tensors, form = tensors_of(batch), form_of(batch)
        except TypeError as error:
            self._give_up(error)
            return None, []
        graph = self._graphs.get(form)
        if graph is None and form in self._seen and self.is_recording and len(self._graphs) < MOST_GRAPHS:
            graph = self._record_batch(batch, tensors, form)
        self._seen.add(form)
        return graph, tensors

    def _record_batch(self, batch: Batch, tensors: list[Tensor], form: Hashable) -> "_Graph | None":
        places = [tensor.clone() for tensor in tensors]
        own = with_tensors(batch, places)
        graph = self._record(lambda: self.step.accumulate(own))
        if graph is None:
            return None
        self._graphs[form] = _Graph(graph, places)
        return self._graphs[form]

    def _record(self, part: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """A graph of what the part does, which is not done yet; None where it cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        broken: BaseException | None = None
        current = torch.cuda.current_stream()
        try:
            with _no_garbage(), torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
                try:
                    part()
                except BaseException as error:  # is looked at when the recording has ended
                    broken = error
                    _let_go(error)
        except RuntimeError as error:
            broken = broken or error
        if broken is None:
            return graph
        torch.cuda.set_stream(current)  # torch leaves its own in place when a recording cannot be ended
        if uses_cudas_allocator():
            # A Stop goes on its way from here, and would take all that it passes into memory for good.
            _KEPT.append(broken if _is_cuda_error(broken) else str(broken))
        if not isinstance(broken, Exception) or isinstance(broken, self.interrupts):
            raise broken
        if isinstance(broken, torch.OutOfMemoryError):  # graphs hold their memory: op by op there may be enough
            self.release()
        with contextlib.suppress(RuntimeError):
            torch.cuda.synchronize()
        self._give_up(broken)
        return None

    def _give_up(self, error: Exception) -> None:
        if self.is_recording:
            first = str(error).strip().split("\n")[0]
            self.say(f"The step goes op by op, which is slower: it could not be recorded as a CUDA graph ({first}).")
        self.is_recording = False


_KEPT: list[BaseException | str] = []
"""Under cudaMallocAsync, what broke recordings off; with all that its frames hold where it was a CUDA error, since the
memory cannot be given back then. Torch takes no further recording after one."""
_BROKEN_BEFORE = "a recording broke off under cudaMallocAsync (--disable-cuda-malloc avoids that)."


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Nothing that is no longer used goes while it lasts: it might wait for the GPU, which breaks a recording."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _let_go(error: BaseException) -> None:
    """Frees what an interrupted recording has made while it still lasts: afterwards it would be too late."""
    if _is_cuda_error(error):
        return
    chained: BaseException | None = error
    while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained.__traceback__ = None
        chained = chained.__context__
    gc.collect()


def _is_cuda_error(error: BaseException) -> bool:
    return isinstance(error, getattr(torch, "AcceleratorError", ()))  # torch 2.8 and later tells them apart


def _trim_graph_memory(device: torch.device) -> None:
    """Gives the memory of graphs that are gone back to the GPU, which torch does not do under cudaMallocAsync."""
    driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    driver.cuDeviceGraphMemTrim(device.index or 0)


@dataclasses.dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    places: list[Tensor]
    """where it reads its batch"""

    def replay(self, tensors: list[Tensor]) -> None:
        torch._foreach_copy_(self.places, tensors)
        _replay(self.graph)


def _replay(graph: torch.cuda.CUDAGraph) -> None:
    try:
        graph.replay()
    except RuntimeError as error:  # under cudaMallocAsync memory is taken now, not when it is recorded
        if "out of memory" not in str(error):
            raise
        raise torch.OutOfMemoryError(str(error)) from error
