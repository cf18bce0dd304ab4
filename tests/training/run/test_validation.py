"""The loss on held-out pictures."""

import torch
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.prediction import Eps, has_float64
from lora_kiln.training.run.validation import mean_loss
from torch import Tensor

from device_without_float64 import DEVICE, WithoutFloat64

EPS = Eps(torch.linspace(0.5, 2.0, 10))


def zeros(x_t: Tensor, sigma: Tensor, cond: object) -> Tensor:
    return torch.zeros_like(x_t)


def batch(size: float, samples: int, device: torch.device) -> Batch:
    x_0 = torch.full((samples, 1, 2, 2), size, device=device)
    one = torch.ones(samples, device=device)
    return Batch(x_0, torch.zeros_like(x_0), one, one, None)


def test_it_is_the_mean_over_all_samples_of_all_batches() -> None:
    cpu = torch.device("cpu")
    # At sigma 1 the error of x_0 is that of eps, and the model predicts zeros.
    assert mean_loss(zeros, EPS, [batch(1.0, 3, cpu), batch(3.0, 1, cpu)]) == (3 * 1.0 + 9.0) / 4


def test_a_device_without_float64_measures_it_too() -> None:
    has_float64.cache_clear()
    try:
        with WithoutFloat64():
            assert not has_float64(DEVICE) and has_float64(torch.device("cpu"))
            assert mean_loss(zeros, EPS, [batch(1.0, 2, DEVICE)]) == 0.0  # zeros are all that the stand-in can give
    finally:
        has_float64.cache_clear()
