"""Execution of a step: eagerly, or as CUDA graphs that are captured once and replayed.

A small step is bound by Python and kernel launches; a replayed graph needs neither. Both run the same kernels.
"""

import contextlib
import ctypes
import dataclasses
import gc
import os
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ..adapters import Adapter
from ..basics.backends import backend_of
from ..basics.memory import is_device_full
from ..basics.pytree import form_of, tensors_of, with_tensors
from .batches import Batch
from .step import Step

MOST_GRAPHS = 48
"""Largest number of batch shapes that are captured; further ones run eagerly."""


class Engine(Protocol):
    """Executes the parts of a step in order: `accumulate` for each of its batches, then `update`."""

    @property
    def step(self) -> Step: ...

    def accumulate(self, batch: Batch) -> None: ...

    def update(self) -> None: ...

    def release(self) -> None:
        """Frees memory that it holds for speed."""


def uses_cudas_allocator() -> bool:
    """Whether torch runs with cudaMallocAsync, as ComfyUI starts it by default.

    A capture aborted by a CUDA error cannot free its memory then, and torch ends the whole process: capture only models
    that are known to work.
    """
    return torch.cuda.get_allocator_backend() == "cudaMallocAsync"


class EagerEngine:
    """Runs every operation from Python."""

    def __init__(self, step: Step):
        self.step = step

    def accumulate(self, batch: Batch) -> None:
        """See `Step.accumulate`."""
        self.step.accumulate(batch)

    def update(self) -> None:
        """See `Step.update`."""
        self.step.update()

    def release(self) -> None:
        """Does nothing: no memory is held."""


class GraphEngine:
    """Replays CUDA graphs: one for each shape of batch, and one for the update. Each part runs eagerly the first time.

    The update of an optimizer that is not capturable is not recorded.

    Args:
        say: called once with a sentence, where a part of the step cannot be captured.
        adapters: the trained ones; factors on their ranks, drawn before `accumulate`, are inputs of the graphs.
        interrupts: exceptions by which a user stops a run; a capture passes them on.
    """

    def __init__(
        self,
        step: Step,
        say: Callable[[str], None],
        interrupts: tuple[type[BaseException], ...] = (),
        adapters: Iterable[Adapter] = (),
    ):
        self.step = step
        self.adapters = list(adapters)
        self.say = say
        self.interrupts = interrupts
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, _Graph] = {}
        self._seen: set[Hashable] = set()
        self._update: torch.cuda.CUDAGraph | None = None
        self._has_updated = False
        self.is_recording = not _ABORTED
        """False once a capture has failed: no further one is tried"""
        if _ABORTED:
            self.say(f"The step goes op by op, which is slower, until ComfyUI is restarted: {_BROKEN_BEFORE}")

    @property
    def graphs(self) -> int:
        """Number of batch shapes captured so far."""
        return len(self._graphs)

    def accumulate(self, batch: Batch) -> None:
        """See `Step.accumulate`."""
        graph, tensors = self._graph_for(batch)
        if graph is None:
            self.step.accumulate(batch)
        else:
            graph.replay(tensors)

    def update(self) -> None:
        """See `Step.update`."""
        if self._update is None and self._has_updated and self.is_recording and self.step.is_capturable:
            self._update = self._record(self.step.update)
        self._has_updated = True
        if self._update is None:
            self.step.update()
        else:
            self._update.replay()

    def release(self) -> None:
        """Drops all graphs and their memory; they are captured again at their next use."""
        with contextlib.suppress(RuntimeError):  # a CUDA error was raised where it occurred
            torch.cuda.synchronize()
        self._graphs.clear()
        self._seen.clear()
        self._update = None
        self._pool = torch.cuda.graph_pool_handle()
        if uses_cudas_allocator():
            _trim_graph_memory(self.step.loss.device)

    def _graph_for(self, batch: Batch) -> "tuple[_Graph | None, list[Tensor]]":
        """The graph for the batch's form, captured at the form's second occurrence, and the batch's tensors."""
        is_in_groups = isinstance(batch.cond, list) and len(batch.cond) > 1  # its rows are indexed by lists then
        if is_in_groups or not (self.is_recording or self._graphs):
            return None, []
        try:
            inputs = batch, self._rank_factors()
            tensors, form = tensors_of(inputs), form_of(inputs)
        except TypeError as error:
            self._give_up(error)
            return None, []
        graph = self._graphs.get(form)
        if graph is None and form in self._seen and self.is_recording and len(self._graphs) < MOST_GRAPHS:
            graph = self._record_batch(inputs, tensors, form)
        self._seen.add(form)
        return graph, tensors

    def _record_batch(
        self, inputs: tuple[Batch, list[Tensor]], tensors: list[Tensor], form: Hashable
    ) -> "_Graph | None":
        own = [tensor.clone() for tensor in tensors]
        batch, factors = with_tensors(inputs, own)
        with self._reading(factors):
            graph = self._record(lambda: self.step.accumulate(batch))
        if graph is None:
            return None
        self._graphs[form] = _Graph(graph, own)
        return self._graphs[form]

    def _rank_factors(self) -> list[Tensor]:
        """The factors on ranks that the adapters read, each tensor once."""
        found = (each.dropped.of_all for each in self.adapters)
        return list({id(factors): factors for factors in found if factors is not None}.values())

    @contextlib.contextmanager
    def _reading(self, factors: list[Tensor]) -> Iterator[None]:
        """Within the context the adapters read these tensors instead of those of `_rank_factors`."""
        before = [each.dropped for each in self.adapters]
        others = {id(old): new for old, new in zip(self._rank_factors(), factors, strict=True)}
        for adapter, dropped in zip(self.adapters, before, strict=True):
            if dropped.of_all is not None:
                adapter.dropped = dataclasses.replace(dropped, of_all=others[id(dropped.of_all)])
        try:
            yield
        finally:
            for adapter, dropped in zip(self.adapters, before, strict=True):
                adapter.dropped = dropped

    def _record(self, part: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Captures a part of the step without running it; None where that fails."""
        graph = torch.cuda.CUDAGraph()
        broken: BaseException | None = None
        current = torch.cuda.current_stream()
        try:
            with _no_garbage(), torch.cuda.graph(graph, self._pool, capture_error_mode="thread_local"):
                try:
                    part()
                except BaseException as error:  # handled when the capture has ended
                    broken = error
                    _free_frames(error)
        except RuntimeError as error:
            broken = broken or error
        if broken is None:
            return graph
        torch.cuda.set_stream(current)  # torch leaves the capture's stream in place when a capture cannot be ended
        if uses_cudas_allocator():
            # Only CUDA errors are stored themselves: a user's interrupt would store all frames that it passes.
            _ABORTED.append(broken if _is_cuda_error(broken) else str(broken))
        if not isinstance(broken, Exception) or isinstance(broken, self.interrupts):
            raise broken
        if is_device_full(broken):  # graphs hold memory: without them there may be enough
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


_ABORTED: list[BaseException | str] = []
"""Errors that aborted a capture under cudaMallocAsync, after which torch makes no further one. CUDA errors keep their
traceback, as the memory of its frames cannot be freed."""
_BROKEN_BEFORE = "a recording broke off under cudaMallocAsync (--disable-cuda-malloc avoids that)."


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Disables garbage collection: freeing an object may synchronise with the GPU and abort the capture."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _free_frames(error: BaseException) -> None:
    """Frees the tensors that an aborted capture has made, while it lasts: after its end they could not be freed."""
    if _is_cuda_error(error):
        return
    chained: BaseException | None = error
    while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained.__traceback__ = None
        chained = chained.__context__
    gc.collect()


def _is_cuda_error(error: BaseException) -> bool:
    return isinstance(error, getattr(torch, "AcceleratorError", ()))  # a class of torch 2.8 and later


def _trim_graph_memory(device: torch.device) -> None:
    """Returns the memory of deleted graphs to the GPU, which torch does not do under cudaMallocAsync."""
    if not backend_of(device).is_nvidia:
        return
    with contextlib.suppress(OSError, AttributeError):  # without it the memory returns when the process ends
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        driver.cuDeviceGraphMemTrim(device.index or 0)


@dataclasses.dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    """the batch and the factors on ranks that it reads"""

    def replay(self, tensors: list[Tensor]) -> None:
        torch._foreach_copy_(self.inputs, tensors)
        self.graph.replay()
