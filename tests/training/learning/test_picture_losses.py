"""Losses of pictures relative to each other."""

import torch
from lora_kiln.training.learning.picture_losses import LEVELS, PictureLosses

from device_without_float64 import DEVICE, WithoutFloat64


def test_a_picture_is_compared_with_all_at_the_same_noise_levels() -> None:
    losses = PictureLosses(3, torch.device("cpu"))
    losses.add(torch.tensor([0, LEVELS]), torch.tensor([1.0, 3.0]))  # pictures 0 and 1, level 0
    losses.add(torch.tensor([1]), torch.tensor([10.0]))  # picture 0, level 1: it alone was seen there
    relative = losses.relative()
    assert [count for _, count in relative] == [2, 1, 0]
    assert relative[0][0] == 11.0 / 12.0 and relative[1][0] == 1.5 and relative[2][0] is None


def test_a_device_without_float64_tells_them_too() -> None:
    with WithoutFloat64():
        losses = PictureLosses(2, DEVICE)
        losses.add(torch.zeros(1, dtype=torch.int64, device=DEVICE), torch.ones(1, device=DEVICE))
        assert losses.relative() == [(None, 0), (None, 0)]  # zeros are all that the stand-in can give
