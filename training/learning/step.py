"""One optimizer step: the only place where it is defined. `engine` executes it."""

import math

import torch
from torch import Tensor, nn

from ..adapters.flat import FlatParameters
from ..config import LoRAConfig
from .batches import Batch
from .ema import EMA
from .loss_scale import LossScale
from .objective import Family, Predict, sample_losses
from .optimizers import is_capturable, step_unless
from .picture_losses import PictureLosses


class Step:
    """The gradients of one or several batches, and the move that they make.

    All its state lies on the device, and with an optimizer that can be captured nothing here waits for the device.

    Args:
        predict: the model with its adapters on: (x_t, sigma, cond) -> x_0.
        optimizer: each of its param_groups has its peak "learning_rate".
        flats: whose working copies follow each move.
        ema: follows each move too.
        picture_losses: takes each sample's loss, where its batch says which picture it is of.
        loss_scale: for arithmetic in which small gradients would be lost.
    """

    def __init__(
        self,
        predict: Predict,
        family: Family,
        config: LoRAConfig,
        optimizer: torch.optim.Optimizer,
        flats: tuple[FlatParameters, ...] = (),
        ema: EMA | None = None,
        picture_losses: PictureLosses | None = None,
        loss_scale: LossScale | None = None,
    ):
        self.predict = predict
        self.family = family
        self.config = config
        self.optimizer = optimizer
        self.flats = flats
        self.ema = ema
        self.picture_losses = picture_losses
        self.loss_scale = loss_scale
        self.parameters: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        device = self.parameters[0].device
        self.is_capturable = is_capturable(optimizer)
        self.loss = torch.zeros((), device=device)
        """of the batches so far"""
        self.outcome = torch.zeros(2, device=device)
        """loss and norm of the gradients of the step last moved"""
        self.failed = torch.zeros((), device=device)
        """1 as soon as either was no number: from then on nothing moves"""

    def accumulate(self, batch: Batch) -> None:
        """Adds a batch's loss and gradients to the step's."""
        loss, losses = batch_loss(self.predict, self.family, batch, self.config)
        loss = loss / self.config.optimization.gradient_accumulation
        (loss if self.loss_scale is None else loss * self.loss_scale.value.to(loss.device)).backward()
        if self.picture_losses is not None and batch.cells is not None:
            self.picture_losses.add(batch.cells, losses)
        self.loss += loss.detach().to(self.loss.device)

    def forget(self) -> None:
        """Begins the step anew, as if nothing had been accumulated."""
        self.optimizer.zero_grad(set_to_none=False)
        self.loss.zero_()

    def move(self) -> None:
        """Clips the gradients, moves the parameters unless something is no number, and begins anew."""
        if self.loss_scale is not None:
            self.loss_scale.unscale(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters, self.config.optimization.max_grad_norm or math.inf
        ).float()
        stays = self.failed
        if self.loss_scale is not None:
            stays = self.loss_scale.settle(self.loss, norm)
            norm = torch.where(stays > 0, 0.0, norm)
        self.outcome.copy_(torch.stack([self.loss, norm]))
        self.failed.copy_(torch.maximum(self.failed, 1.0 - self.outcome.isfinite().all().float()))
        stays = torch.maximum(stays, self.failed)
        step_unless(self.optimizer, stays)
        self.forget()
        for flat in self.flats:
            flat.refresh()
        if self.ema is not None:
            self.ema.update(stays)


def batch_loss(predict: Predict, family: Family, batch: Batch, config: LoRAConfig) -> tuple[Tensor, Tensor]:
    """(the mean of the samples' weighted losses: (), each sample's loss without its weight: (B,)), float32."""
    objective = config.objective
    losses = sample_losses(
        predict, family, batch.x_0, batch.noise, batch.sigma, batch.cond,
        objective.min_snr_gamma, objective.debiased_estimation, objective.loss, objective.huber_c,
        objective.huber_schedule,
        batch.mask, batch.perturbation,
    )  # fmt: skip
    return (losses * batch.weight).mean(), losses
