"""Making a run fit into the GPU's memory: what is tried and in which order, and what is done when it runs out later."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ..adapters import Adapter
from ..adapters.base import Dropped
from ..adapters.shared_input import SharedInput
from .batches import Batch, parts
from .engine import Engine
from .step import Step


@dataclass(frozen=True)
class Placement:
    """How a step takes its memory.

    The gradient is the same for all of them up to rounding, but with dropout of inputs, which the parts of a batch
    drop alike.
    """

    checkpointing: bool
    """whether activations are computed again in the backward pass"""
    pictures: int
    """in one forward pass"""
    resident: float = 1.0
    """share of the blocks' weights that stays on the GPU; the others come from RAM when they are needed"""

    def words(self, batch_size: int) -> str:
        """What a person should know of it, e.g. "gradient checkpointing, 1 of 4 pictures at a time"."""
        parts = ["gradient checkpointing"] if self.checkpointing else []
        if self.pictures < batch_size:
            parts.append(f"{self.pictures} of {batch_size} pictures at a time")
        if self.resident < 1.0:
            parts.append(f"{1.0 - self.resident:.0%} of the blocks' weights brought from RAM")
        return ", ".join(parts) or "all on the GPU"


def placements(asked: Placement, may_split: bool, weights_fit: bool) -> Iterator[Placement]:
    """What to try, from what the recipe asks for to what takes least memory; slower the further on.

    Args:
        may_split: whether a batch may go in parts.
        weights_fit: whether the base model's weights fit at all; else they are streamed from the start.
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
    """Executes steps with another engine in parts that fit, and in smaller ones when memory runs out.

    Args:
        most: pictures in one forward pass.
        may_split: whether a batch may go in parts; one whose condition carries a graph may not.
        say: told when the parts become smaller.
        adapters: that are trained; what each drops is drawn for a batch before it comes.
        shared: what may hold a part of a pass that broke off.
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
        self._taken: list[tuple[Batch, list[Dropped]]] = []
        """the step's batches so far, each with what the adapters drop at it"""

    @property
    def step(self) -> Step:
        return self.engine.step

    def accumulate(self, batch: Batch) -> None:
        """See `Step.accumulate`.

        Raises:
            torch.OutOfMemoryError: one picture alone does not fit.
        """
        self._taken.append((batch, [adapter.dropped for adapter in self.adapters]))
        done = self._try(self._taken[-1:])
        while not done:
            largest = min(self.most, max(len(each.x_0) for each, _ in self._taken))
            if not self.may_split or largest == 1:
                self.step.forget()
                raise torch.OutOfMemoryError("not even one picture at a time fits into the memory that is left")
            self.most = largest // 2
            self.say(f"The GPU's memory ran out: it goes on with {self.most} pictures at a time, the same step anew.")
            for each in self.shared:
                each.forget()
            self.step.forget()  # a backward pass that broke off has added some of its gradients
            self.engine.release()
            free_memory()
            done = self._try(self._taken)

    def move(self) -> None:
        """See `Step.move`."""
        self._taken.clear()
        self.engine.move()

    def release(self) -> None:
        """See `Engine.release`."""
        self.engine.release()

    def _try(self, batches: list[tuple[Batch, list[Dropped]]]) -> bool:
        """Whether there was memory for all."""
        try:
            for batch, dropped in batches:
                for adapter, each in zip(self.adapters, dropped, strict=True):
                    adapter.dropped = each
                for part in parts(batch, self.most):
                    self.engine.accumulate(part)
        except torch.OutOfMemoryError:
            return False
        return True


def free_memory() -> None:
    """Gives back what nobody uses any more, objects in cycles included."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
