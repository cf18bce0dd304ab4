"""Batches prepared and copied to the GPU while earlier steps run."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch

from ..basics.pinned import pinned
from ..basics.pytree import tensors_of, with_tensors
from .batches import Batch

AHEAD = 3
"""Batches prepared in advance."""

Made = TypeVar("Made")


class NotHere(RuntimeError):
    """Raised in the worker thread for a batch that only the requesting thread may make."""


@contextmanager
def prefetched(
    make: Callable[[int, int], Batch],
    order: Iterator[tuple[int, int]],
    device: torch.device,
    say: Callable[[str], None],
) -> Iterator[Callable[[int, int], Batch]]:
    """Yields a function like `make` whose batches lie on the device.

    For a GPU a thread makes them in advance and a separate stream copies them; otherwise each is made at its request.

    Args:
        make: the batch of (step, forward pass), on the CPU.
        order: every (step, forward pass), in the order of the requests.
        say: as of `on_device`.
    """
    if device.type != "cuda":
        yield lambda step, micro: on_device(make(step, micro), device, say)
        return
    stream = torch.cuda.Stream(device)

    def bring(step: int, micro: int) -> tuple[Batch, torch.cuda.Event]:
        batch = make(step, micro)
        with torch.cuda.stream(stream):
            batch = on_device(batch, device, say)
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
    """Yields a function like `make` whose results a thread makes in advance.

    Args:
        make: of (step, forward pass). If it raises `NotHere` in the thread, the requesting thread calls it again.
        order: as of `prefetched`.
    """
    waiting: deque[tuple[tuple[int, int], Future[Made]]] = deque()
    with ThreadPoolExecutor(1, "lora-kiln-batches") as thread:

        def made_at(step: int, micro: int) -> Made:
            while len(waiting) <= AHEAD and (position := next(order, None)) is not None:
                waiting.append((position, thread.submit(make, *position)))
            position, future = waiting.popleft()
            if position != (step, micro):
                raise ValueError(f"batch {(step, micro)} was requested where {position} was next")
            with suppress(NotHere):
                return future.result()
            return make(step, micro)

        try:
            yield made_at
        finally:
            for _, future in waiting:
                future.cancel()


def on_device(batch: Batch, device: torch.device, say: Callable[[str], None]) -> Batch:
    """The batch with its tensors on the device; to a GPU they are copied asynchronously, in the current stream.

    Args:
        say: called with a sentence where the system gives no pinned memory, so that copies are not asynchronous.
    """
    tensors = tensors_of(batch)
    if device.type == "cuda":
        moved = [t if t.is_cuda else pinned(t, say).to(device, non_blocking=True) for t in tensors]
    else:
        moved = [tensor.to(device) for tensor in tensors]
    return with_tensors(batch, moved)
