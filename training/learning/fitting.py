"""Fitting a run into the GPU's memory: placements to try, in order, and smaller parts when memory runs out later."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..adapters import Adapter
from ..adapters.base import Dropped
from ..adapters.shared_input import SharedInput
from ..basics.memory import is_device_full
from .batches import Batch, parts
from .engine import Engine
from .step import Step


@dataclass(frozen=True)
class Placement:
    """How a step uses memory.

    All placements give the same gradient up to rounding, except with dropout of inputs, for which all parts of a batch
    drop the same inputs.
    """

    checkpointing: bool
    """whether activations are recomputed in the backward pass"""
    pictures: int
    """in one forward pass"""
    resident: float = 1.0
    """share of the blocks' weights that stays on the GPU; the others are streamed from RAM"""

    def words(self, batch_size: int) -> str:
        """The placement in words, e.g. "gradient checkpointing, 1 of 4 pictures at a time"."""
        parts = ["gradient checkpointing"] if self.checkpointing else []
        if self.pictures < batch_size:
            parts.append(f"{self.pictures} of {batch_size} pictures at a time")
        if self.resident < 1.0:
            parts.append(f"{1.0 - self.resident:.0%} of the blocks' weights brought from RAM")
        return ", ".join(parts) or "all on the GPU"


def placements(asked: Placement, may_split: bool, weights_fit: bool) -> Iterator[Placement]:
    """The placements to try, from that of the recipe to that with the least memory, each slower than the one before.

    Args:
        may_split: whether a batch may be computed in parts.
        weights_fit: whether the base model's weights fit at all; else they are always streamed.
    """
    sparing = replace(asked, checkpointing=True)
    if weights_fit:
        yield asked
        if not asked.checkpointing:
            yield sparing
        while may_split and sparing.pictures > 1:
            sparing = replace(sparing, pictures=sparing.pictures // 2)
            yield sparing
    smallest = replace(sparing, pictures=1) if may_split else sparing
    for resident in (0.75, 0.5, 0.25, 0.0):
        yield replace(smallest, resident=resident)


class FittingEngine:
    """Executes batches with another engine in parts that fit, and in smaller ones when memory runs out.

    Args:
        most: pictures in one forward pass.
        may_split: whether a batch may be computed in parts; one whose condition carries a graph may not.
        say: called with a sentence when the parts become smaller.
        adapters: the trained ones, whose dropout was drawn for a batch before `accumulate`.
        shared: layers that may hold outputs of an aborted pass.
    """

    def __init__(
        self,
        engine: Engine,
        most: int,
        may_split: bool,
        say: Callable[[str], None],
        adapters: Iterable[Adapter],
        shared: Sequence[SharedInput] = (),
    ):
        self.engine = engine
        self.most = most
        self.may_split = may_split
        self.say = say
        self.adapters = list(adapters)
        self.shared = shared
        self._taken: list[tuple[Batch, list[Dropped], int]] = []
        """the batches accumulated so far, each with the adapters' dropout and the seed of torch's generators"""

    @property
    def step(self) -> Step:
        return self.engine.step

    def accumulate(self, batch: Batch) -> None:
        """See `Step.accumulate`.

        Raises:
            torch.OutOfMemoryError: one picture alone does not fit.
        """
        self._taken.append((batch, [adapter.dropped for adapter in self.adapters], torch.initial_seed()))
        done = self._try(self._taken[-1:])
        while not done:
            largest = min(self.most, max(len(each.x_0) for each, *_ in self._taken))
            if not self.may_split or largest == 1:
                self.step.reset()
                raise torch.OutOfMemoryError("not even one picture at a time fits into the memory that is left")
            self.most = largest // 2
            self.say(f"The GPU's memory ran out: it goes on with {self.most} pictures at a time, the same step anew.")
            for each in self.shared:
                each.forget()
            self.step.reset()  # an aborted backward pass has added some of its gradients
            self.engine.release()
            free_memory()
            done = self._try(self._taken)

    def update(self) -> None:
        """See `Step.update`."""
        self._taken.clear()
        self.engine.update()

    def release(self) -> None:
        """See `Engine.release`."""
        self.engine.release()

    def _try(self, batches: list[tuple[Batch, list[Dropped], int]]) -> bool:
        """Accumulates the batches; False where memory ran out."""
        try:
            for batch, dropped, seed in batches:
                torch.manual_seed(seed)  # a pass that is made anew draws the same numbers
                for adapter, each in zip(self.adapters, dropped, strict=True):
                    adapter.dropped = each
                for part in parts(batch, self.most):
                    self.engine.accumulate(part)
        except Exception as error:
            if not is_device_full(error):
                raise
            return False
        return True


def free_memory() -> None:
    """Frees unreferenced objects, those in reference cycles included, and the memory that torch caches."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
