"""What the kit's trainings share: a schedule that ends when the time is up, a captured step, a pool of pictures."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from random import Random

import torch
from torch import Tensor

from kit.draw import Atlas, Scene, random_scene, render


class Clock:
    """Counts training seconds over several calls; the rate warms up and falls to 0 by cosine when `total` is over."""

    def __init__(self, seconds: float, total: float | None = None, spent: float = 0.0, every: float = 10.0) -> None:
        self.start = time.monotonic()
        self.spent, self.total = spent, total or spent + seconds
        self.end = min(spent + seconds, self.total)
        self.every, self._next = every, spent

    @property
    def now(self) -> float:
        """Training seconds so far, those of earlier calls included."""
        return self.spent + time.monotonic() - self.start

    def rate(self, step: int, warmup: int = 300) -> float:
        """The factor on the learning rate."""
        return min(1.0, (step + 1) / warmup) * (1 + math.cos(math.pi * min(1.0, self.now / self.total))) / 2

    def due(self) -> bool:
        """Whether it is time for a line of progress."""
        if self.now < self._next:
            return False
        self._next = self.now + self.every
        return True

    def steps(self, first: int = 0, limit: int | None = None) -> Iterator[int]:
        """Step numbers until the time (or the limit) is reached."""
        step = first
        while self.now < self.end and (limit is None or step - first < limit):
            yield step
            step += 1


def captured(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The step as one CUDA graph; on the CPU, or where it waits for the GPU, the step itself.

    It must read and write the same tensors every time.
    """
    if device.type != "cuda":
        return step
    step()
    torch.cuda.set_sync_debug_mode("error")  # a capture that fails half way spoils the generators: find out before
    try:
        step()
    except RuntimeError as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(f"not captured: {error}"[:500], f"({where.filename}:{where.lineno}: {where.line})", flush=True)
        return step
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def chunks(
    count: int, seed: int, atlas: Atlas, shapes: Sequence[str], pairs: float = 0.2, size: int = 128, chunk: int = 1024
) -> Iterator[tuple[list[Scene], Tensor]]:
    """Random scenes and their pictures (B, size, size, 3), a chunk at a time."""
    rng = Random(f"pool {seed}")
    for start in range(0, count, chunk):
        scenes = [random_scene(rng, shapes, pairs) for _ in range(min(chunk, count - start))]
        yield scenes, render(scenes, atlas, size)
