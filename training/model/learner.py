"""A learner: networks with adapters, their optimizer and engine, and its state in checkpoints."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..adapters.flat import FlatParameters
from ..basics.memory import is_memory_full
from ..learning.ema import EMA
from ..learning.engine import Engine
from ..learning.loss_scale import LossScale
from ..learning.objective import Predict
from ..learning.optimizers import for_use, load_optimizer_state, optimizer_state
from ..learning.picture_losses import PictureLosses
from .networks import Networks
from .state import Damaged, copy_into, numbered, with_flats

LAID_AS_FLATS = re.compile(r"(?:values|ema|optimizer\.state)\.(\d+)")
"""Tensors of a state that have the order of the flat parameters of this number, if they have their length."""


@dataclass
class Learner:
    """All that changes during a run, and the engine that changes it."""

    networks: Networks
    predict: Predict
    """the model with its adapters on"""
    flats: list[FlatParameters]
    optimizer: torch.optim.Optimizer
    ema: EMA | None
    picture_losses: PictureLosses
    engine: Engine

    @property
    def loss_scale(self) -> LossScale | None:
        """The loss scale of fp16; None in other precisions."""
        return self.engine.step.loss_scale

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within the context the adapters have the weights to use: averaged, where the optimizer or an EMA averages."""
        with ExitStack() as stack:
            stack.enter_context(for_use(self.optimizer))
            if self.ema is not None:
                stack.enter_context(self.ema.applied())
            yield

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The state for `load`: (tensors, plain JSON)."""
        tensors, plain = optimizer_state(self.optimizer)
        tensors |= numbered("values", (flat.values for flat in self.flats))
        tensors |= numbered("pictures", (self.picture_losses.sums, self.picture_losses.counts))
        if self.ema is not None:
            tensors |= numbered("ema", [*self.ema.averages, *self.ema.updates.values()])
        if self.loss_scale is not None:
            tensors |= numbered("loss_scale", self.loss_scale.state)
        return self._rearranged(tensors, FlatParameters.in_order), {"optimizer": plain}

    def load(self, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any], same_pictures: bool) -> None:
        """Loads a state.

        Args:
            same_pictures: whether it is of a run on the same pictures; else their losses are left out.

        Raises:
            Damaged: it is of another recipe or model.
        """
        is_flat = any(self.optimizer.param_groups[0]["params"][0] is flat.values for flat in self.flats)
        tensors = with_flats(tensors, self.flats, ("ema", "optimizer.state") if is_flat else ("ema",))
        tensors = self._rearranged(tensors, FlatParameters.as_laid)
        copy_into((flat.values for flat in self.flats), "values", tensors)
        if same_pictures:
            copy_into((self.picture_losses.sums, self.picture_losses.counts), "pictures", tensors)
        if self.ema is not None:
            copy_into([*self.ema.averages, *self.ema.updates.values()], "ema", tensors)
        if self.loss_scale is not None and "loss_scale.0" in tensors:  # a run in another precision has none
            copy_into(self.loss_scale.state, "loss_scale", tensors)
        try:
            load_optimizer_state(self.optimizer, tensors, plain["optimizer"])
        except (ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
            if is_memory_full(error):
                raise
            raise Damaged(f"the checkpoint's optimizer does not fit this recipe: {error}") from error
        for flat in self.flats:
            flat.refresh()
        self.engine.step.reset()
        self.engine.step.failed.zero_()
        self.engine.release()

    def _rearranged(
        self, tensors: Mapping[str, torch.Tensor], change: Callable[[FlatParameters, torch.Tensor], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The tensors, `change` applied to those that are laid out as one of the flat parameters."""
        changed = dict(tensors)
        for name, tensor in tensors.items():
            found = LAID_AS_FLATS.match(name)
            if found and int(found[1]) < len(self.flats):
                flat = self.flats[int(found[1])]
                if tensor.shape == flat.values.shape:
                    changed[name] = change(flat, tensor)
        return changed
