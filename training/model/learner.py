"""What learns: twins of the graph's models with adapters on, their optimizer, and what executes their steps."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ..adapters import Adapter
from ..adapters.attach import (
    Target,
)
from ..adapters.flat import FlatParameters
from ..adapters.shared_input import AdaptedForward, SharedInput
from ..learning.ema import EMA
from ..learning.engine import Engine
from ..learning.loss_scale import LossScale
from ..learning.objective import Predict
from ..learning.optimizers import for_use, load_optimizer_state, optimizer_state
from ..learning.picture_losses import PictureLosses
from .state import Damaged, numbered, put_into

AS_FLATS = re.compile(r"(?:values|ema|optimizer\.state)\.(\d+)")


@dataclass
class Networks:
    """What is trained on: twins of the graph's models, and the adapters on them."""

    model: Any
    text_encoder: Any | None
    """None where the text encoders are not trained"""
    targets: list[Target]
    adapters: dict[str, Adapter]
    """by state-dict key of the base weight"""
    forwards: dict[str, AdaptedForward] = field(default_factory=dict)
    """of the layers with their adapters on, likewise"""
    shared: list[SharedInput] = field(default_factory=list)
    """the layers that are computed together"""


@dataclass
class Learner:
    """All that changes while a run goes on, and what changes it."""

    nets: Networks
    flats: list[FlatParameters]
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    picture_losses: PictureLosses
    engine: Engine

    @property
    def loss_scale(self) -> LossScale | None:
        """That of fp16."""
        return self.engine.step.loss_scale

    @property
    def predict(self) -> Predict:
        """The model with its adapters on."""
        return self.engine.step.predict

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The adapters as they are used, not as they are trained: averaged."""
        with ExitStack() as stack:
            stack.enter_context(for_use(self.optimizer))
            if self.ema is not None:
                stack.enter_context(self.ema.applied())
            yield

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """(tensors, plain JSON) that `load` takes."""
        tensors, plain = optimizer_state(self.optimizer)
        tensors |= numbered("values", (flat.values for flat in self.flats))
        tensors |= numbered("pictures", (self.picture_losses.sums, self.picture_losses.counts))
        if self.ema is not None:
            tensors |= numbered("ema", [*self.ema.averages, *self.ema.updates.values()])
        if self.loss_scale is not None:
            tensors |= numbered("loss_scale", self.loss_scale.state)
        return self._rearranged(tensors, FlatParameters.in_order), {"optimizer": plain}

    def load(self, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any], same_pictures: bool) -> None:
        """Goes back to a state.

        Raises:
            Damaged: it is of another recipe or model.
        """
        tensors = self._rearranged(tensors, FlatParameters.as_laid)
        put_into((flat.values for flat in self.flats), "values", tensors)
        if same_pictures:
            put_into((self.picture_losses.sums, self.picture_losses.counts), "pictures", tensors)
        if self.ema is not None:
            put_into([*self.ema.averages, *self.ema.updates.values()], "ema", tensors)
        if self.loss_scale is not None and "loss_scale.0" in tensors:  # else it goes on from another precision
            put_into(self.loss_scale.state, "loss_scale", tensors)
        try:
            load_optimizer_state(self.optimizer, tensors, plain["optimizer"])
        except (ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
            raise Damaged(f"the checkpoint's optimizer does not fit this recipe: {error}") from error
        for flat in self.flats:
            flat.refresh()
        self.engine.step.forget()
        self.engine.step.failed.zero_()
        self.engine.release()

    def _rearranged(
        self, tensors: Mapping[str, torch.Tensor], change: Callable[[FlatParameters, torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Those of the tensors changed that lie as one of the flats does; they have its number in their names."""
        changed = dict(tensors)
        for name, tensor in tensors.items():
            found = AS_FLATS.match(name)
            if found and int(found[1]) < len(self.flats):
                flat = self.flats[int(found[1])]
                if tensor.shape == flat.values.shape:
                    changed[name] = change(flat, tensor)
        return changed
