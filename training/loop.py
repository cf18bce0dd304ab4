"""The loop."""

import math
from collections.abc import Callable

import torch

from .batches import Batch
from .config import LoRAConfig
from .objective import Family, Predict, sample_losses
from .optimizers import rate_factor
from .schedules import learning_rate_factor


class Diverged(RuntimeError):
    """The loss or its gradients are no longer numbers.

    Args:
        what: e.g. "The loss is nan".
        step: the optimizer step, from 1.
    """

    def __init__(self, what: str, step: int, learning_rate: float):
        super().__init__(
            f"{what} at step {step}: training has diverged. Lower learning_rate (now {learning_rate:g}), "
            "or raise warmup, or use precision fp32."
        )


def train(
    predict: Predict,
    family: Family,
    batch_at: Callable[[int, int], Batch],
    optimizer: torch.optim.Optimizer,
    config: LoRAConfig,
    steps: int,
    after_step: Callable[[int, float, float], None],
) -> None:
    """Trains the optimizer's parameters.

    Args:
        predict: the model with its adapters on: (x_t, sigma, cond) -> x_0.
        batch_at: the batch of (step, forward pass within the step); its cond may carry a graph.
        optimizer: each of its param_groups has its peak "learning_rate".
        after_step: called with (steps done, loss, the model's learning rate); may raise to end the run.

    Raises:
        Diverged: the loss is not finite; the parameters are those before that step.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(steps):
        factor = learning_rate_factor(config, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["learning_rate"] * factor
        learning_rate = config.learning_rate * factor * rate_factor(optimizer)

        loss = 0.0
        for micro in range(config.gradient_accumulation):
            batch = batch_at(step, micro)
            micro_loss = batch_loss(predict, family, batch, config) / config.gradient_accumulation
            micro_loss.backward()
            loss += micro_loss.item()
        if not math.isfinite(loss):
            raise Diverged(f"The loss is {loss}", step + 1, config.learning_rate)

        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
        if not norm.isfinite():
            raise Diverged("The gradients are no numbers", step + 1, config.learning_rate)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(step + 1, loss, learning_rate)


def batch_loss(predict: Predict, family: Family, batch: Batch, config: LoRAConfig) -> torch.Tensor:
    """The mean of the samples' weighted losses: () float32."""
    losses = sample_losses(
        predict, family, batch.x_0, batch.noise, batch.sigma, batch.cond,
        config.min_snr_gamma, config.debiased_estimation, config.loss, config.huber_c, config.huber_schedule,
        batch.mask, batch.perturbation,
    )  # fmt: skip
    return (losses * batch.weight).mean()
