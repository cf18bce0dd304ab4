"""The loss of a batch.

The model returns x_0 for every parametrisation. The error of x_0 times sqrt(w(sigma)) is the error of the network's
output (noise, velocity), in whose space the model was trained; every loss here is taken in that space.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..config import ObjectiveConfig
from .batches import Batch
from .prediction import Prediction, along_samples, in_float64

Predict = Callable[[Tensor, Tensor, Any], Tensor]
"""(x_t (B, ...), sigma (B,), cond) -> x_0 (B, ...)"""
BatchLoss = Callable[[Batch], tuple[Tensor, Tensor]]
"""batch -> (mean of the weighted losses (), loss of each sample (B,)); `batch_loss` for one model and recipe"""

LARGEST_SNR = 1000.0
"""Of debiased estimation, as in kohya's trainer."""


def batch_loss(
    predict: Predict, prediction: Prediction, objective: ObjectiveConfig, batch: Batch
) -> tuple[Tensor, Tensor]:
    """(mean of the samples' weighted losses (), each sample's loss without its own weight (B,)), float32."""
    losses = sample_losses(predict, prediction, objective, batch)
    return (losses * batch.weight).mean(), losses


def sample_losses(predict: Predict, prediction: Prediction, objective: ObjectiveConfig, batch: Batch) -> Tensor:
    """The loss of each sample, weighted by its noise level: (B,) float32, with gradients to the adapters."""
    sigma, noise = batch.sigma, batch.noise
    x_t = prediction.add_noise(batch.x_0, noise if batch.perturbation is None else noise + batch.perturbation, sigma)
    error = predict(x_t, sigma, batch.cond).float() - target_x_0(prediction, batch)
    losses = error.square()
    settings = objective.min_snr_gamma, objective.debiased_estimation
    if objective.loss == "l2":
        weight = loss_weight(prediction, sigma, *settings)
    else:
        square = losses * along_samples(prediction.space_weight(sigma).float(), losses)
        threshold = huber_threshold(prediction, sigma, objective.huber_c, objective.huber_schedule)
        losses = pseudo_huber(square, threshold, objective.loss)
        weight = snr_weight(prediction, sigma, *settings).float()
    if batch.mask is not None:
        losses = losses * batch.mask.reshape(len(batch.mask), *(1,) * (losses.dim() - 3), *batch.mask.shape[-2:])
    return losses.flatten(1).mean(1) * weight


def target_x_0(prediction: Prediction, batch: Batch) -> Tensor:
    """The x_0 (B, ...) for which the network's output would be the target of the noise without its perturbation.

    Input perturbation (Ning et al., arXiv:2301.11706): the model sees noise + gamma n' and is to predict the noise
    alone. With x_0 = c_skip x_t + c_out F and F unchanged, x_0 moves by c_skip times the change of x_t.
    """
    if batch.perturbation is None:
        return batch.x_0
    sigma = batch.sigma
    return batch.x_0 + along_samples(prediction.c_skip(sigma) * sigma, batch.x_0) * batch.perturbation


def loss_weight(
    prediction: Prediction, sigma: Tensor, min_snr_gamma: float = 0.0, debiased_estimation: bool = False
) -> Tensor:
    """The weight of the mean squared error of x_0, by its space and by its noise level: (B,) float32."""
    by_level = snr_weight(prediction, sigma, min_snr_gamma, debiased_estimation)
    return (prediction.space_weight(sigma) * by_level).float()


def snr_weight(
    prediction: Prediction, sigma: Tensor, min_snr_gamma: float = 0.0, debiased_estimation: bool = False
) -> Tensor:
    """The weight of the loss of F at each noise level, by one of the two techniques, with SNR = 1 / sigma^2.

    Returns:
        (B,) float64; 1 for predictions without such weights.
    """
    snr = 1.0 / in_float64(sigma).square()
    if min_snr_gamma and prediction.has_snr_weights:
        return prediction.min_snr_weight(snr, min_snr_gamma)
    if debiased_estimation and prediction.has_snr_weights:
        return prediction.debiased_weight(snr.clamp(max=LARGEST_SNR))
    return torch.ones_like(snr)


def huber_threshold(prediction: Prediction, sigma: Tensor, huber_c: float, schedule: str) -> Tensor:
    """The error at which a pseudo-Huber loss turns from square to linear, for each noise level: (B,) float64.

    Khrapov et al., "Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber Loss",
    arXiv:2403.16728, as in kohya's trainer. constant: c. exponential: c^(t / T), from 1 down to c over the timesteps.
    snr: (1 - c) / (1 + 1 / sqrt(SNR))^2 + c, from 1 down to c over the noise.
    """
    sigma = in_float64(sigma)
    match schedule:
        case "constant":
            return torch.full_like(sigma, huber_c)
        case "exponential":
            return huber_c ** prediction.time(sigma)
        case "snr":
            return (1.0 - huber_c) / (1.0 + prediction.noise_to_signal(sigma)).square() + huber_c
    raise ValueError(f"huber_schedule {schedule!r} is not known")


def pseudo_huber(square: Tensor, threshold: Tensor, loss: str) -> Tensor:
    """The loss of each element from its squared error d^2 (B, ...) and c (B,), scaled as in kohya's trainer.

    huber: 2 c (sqrt(d^2 + c^2) - c), near 0 the square. smooth_l1: 2 (sqrt(d^2 + c^2) - c), for large d twice |d|
    (Charbonnier et al., 1994).
    """
    c = along_samples(threshold.to(square.dtype), square)
    smooth_l1 = 2.0 * square / ((square + c.square()).sqrt() + c)  # the difference of roots without its cancellation
    return c * smooth_l1 if loss == "huber" else smooth_l1
