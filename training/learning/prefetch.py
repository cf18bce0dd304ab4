"""Batches made ready and brought to the GPU while the steps before them run."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

from ..basics.pytree import tensors_of, with_tensors
from .batches import Batch

AHEAD = 3
"""Batches made ready before they are asked for."""

Made = TypeVar("Made")


class NotHere(RuntimeError):
    """This thread may not make it; the one that asks for it may."""


@contextmanager
def prefetched(
    make: Callable[[int, int], Batch], order: Iterator[tuple[int, int]], device: torch.device
) -> Iterator[Callable[[int, int], Batch]]:
    """Gives a function like `make` whose batches lie on the device.

    On a GPU a thread makes them and a stream of its own copies them; elsewhere each is made when it is asked for.

    Args:
        make: the batch of (step, forward pass), on the CPU.
        order: every (step, forward pass) in the order in which they will be asked for.
    """
    if device.type != "cuda":
        yield lambda step, micro: on_device(make(step, micro), device)
        return
    stream = torch.cuda.Stream(device)

    def bring(step: int, micro: int) -> tuple[Batch, torch.cuda.Event]:
        batch = make(step, micro)
        with torch.cuda.stream(stream):
            batch = on_device(batch, device)
            arrived = torch.cuda.Event()
            arrived.record(stream)
        return batch, arrived

    with made_ahead(bring, order) as brought_at:

        def batch_at(step: int, micro: int) -> Batch:
            batch, arrived = brought_at(step, micro)
            current = torch.cuda.current_stream(device)
            current.wait_event(arrived)
            for tensor in tensors_of(batch):
                tensor.record_stream(current)
            return batch

        yield batch_at


@contextmanager
def made_ahead(
    make: Callable[[int, int], Made], order: Iterator[tuple[int, int]]
) -> Iterator[Callable[[int, int], Made]]:
    """Gives a function like `make`, for which a thread has made what is asked for next.

    Args:
        make: of (step, forward pass). Where it raises `NotHere` in the thread, the thread that asks calls it again.
        order: as of `prefetched`.
    """
    waiting: deque[tuple[tuple[int, int], Future[Made]]] = deque()
    with ThreadPoolExecutor(1, "lora-kiln-batches") as thread:

        def made_at(step: int, micro: int) -> Made:
            while len(waiting) <= AHEAD and (place := next(order, None)) is not None:
                waiting.append((place, thread.submit(make, *place)))
            place, future = waiting.popleft()
            if place != (step, micro):
                raise ValueError(f"batch {(step, micro)} was asked for where {place} was next")
            with suppress(NotHere):
                return future.result()
            return make(step, micro)

        try:
            yield made_at
        finally:
            for _, future in waiting:
                future.cancel()


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on the device; on a GPU copied without waiting, in the current stream."""
    tensors = tensors_of(batch)
    if device.type == "cuda":
        moved = [t if t.is_cuda else t.pin_memory().to(device, non_blocking=True) for t in tensors]
    else:
        moved = [tensor.to(device) for tensor in tensors]
    return with_tensors(batch, moved)
