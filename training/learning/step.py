"""One optimizer step: its only definition. `engine` executes it."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..adapters.flat import FlatParameters
from ..config import OptimizationConfig
from .batches import Batch
from .ema import EMA
from .loss_scale import LossScale
from .objective import BatchLoss
from .optimizers import is_capturable, rate_factor, step_unless
from .picture_losses import PictureLosses


class Step:
    """Accumulates the gradients of one or several batches and updates the parameters.

    All its state lies on the device, and nothing here waits for it, but for an update in fp16 with an optimizer that is
    not capturable: it must know whether to move.

    Args:
        batch_loss: of the model with its adapters on.
        optimizer: each of its param_groups has its peak "learning_rate".
        optimization: gives the number of batches to accumulate and the largest norm of the gradients.
        flats: the optimizer's parameters; refreshed after each update.
        ema: updated after each update.
        picture_losses: collects each sample's loss where its batch has bins.
        loss_scale: for fp16, in which small gradients would become zero.
    """

    def __init__(
        self,
        batch_loss: BatchLoss,
        optimizer: torch.optim.Optimizer,
        optimization: OptimizationConfig,
        *,
        flats: Sequence[FlatParameters] = (),
        ema: EMA | None = None,
        picture_losses: PictureLosses | None = None,
        loss_scale: LossScale | None = None,
    ):
        self.batch_loss = batch_loss
        self.optimizer = optimizer
        self.optimization = optimization
        self.flats = flats
        self.ema = ema
        self.picture_losses = picture_losses
        self.loss_scale = loss_scale
        self.parameters: list[nn.Parameter] = [flat.values for flat in flats]
        """those of the optimizer, as few tensors"""
        if not flats:
            self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        device = self.parameters[0].device
        self.is_capturable = is_capturable(optimizer)
        self.loss = torch.zeros((), device=device)
        """of the batches accumulated so far"""
        self.outcome = torch.zeros(3, device=device)
        """(loss, norm of the gradients, the optimizer's factor on the learning rate) of the last update"""
        self.failed = torch.zeros((), device=device)
        """1 once an outcome was not finite: the parameters are not updated any more"""

    def accumulate(self, batch: Batch) -> None:
        """Adds a batch's loss and gradients to those of the step."""
        loss, losses = self.batch_loss(batch)
        loss = loss / self.optimization.gradient_accumulation
        (loss if self.loss_scale is None else loss * self.loss_scale.value.to(loss.device)).backward()
        if self.picture_losses is not None and batch.bins is not None:
            self.picture_losses.add(batch.bins, losses)
        self.loss += loss.detach().to(self.loss.device)

    def reset(self) -> None:
        """Drops the loss and the gradients accumulated so far."""
        torch._foreach_zero_([p.grad for p in self.parameters if p.grad is not None])
        self.loss.zero_()

    def update(self) -> None:
        """Clips the gradients, updates the parameters unless an outcome was not finite, and resets."""
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.optimization.max_grad_norm or math.inf).float()
        skips = self.failed
        if self.loss_scale is not None:
            skips = self.loss_scale.update(self.loss, norm)
            norm = torch.where(skips > 0, 0.0, norm)
        self.outcome[:2].copy_(torch.stack([self.loss, norm]))
        self.outcome[2:].fill_(rate_factor(self.optimizer))
        self.failed.copy_(torch.maximum(self.failed, 1.0 - self.outcome[:2].isfinite().all().float()))
        skips = torch.maximum(skips, self.failed)
        step_unless(self.optimizer, skips, self.parameters, goes_on=self.loss_scale is not None)
        self.reset()
        for flat in self.flats:
            flat.refresh()
        if self.ema is not None:
            self.ema.update(skips)
