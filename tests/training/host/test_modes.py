"""The host's training and sampling modes, and that they are undone."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host


def test_training_mode_puts_the_hosts_flag_back_after_an_error():
    with pytest.raises(RuntimeError, match="stop"), host.training_mode():
        assert comfy.model_management.in_training is True
        with host.sampling_mode():
            assert comfy.model_management.in_training is False
        raise RuntimeError("stop")
    assert comfy.model_management.in_training is False


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"), reason="this PyTorch has no such choice"
)
def test_training_sums_fp16_in_fp32_and_puts_the_hosts_choice_back() -> None:
    products = torch.backends.cuda.matmul
    before, products.allow_fp16_accumulation = products.allow_fp16_accumulation, True  # as --fast sets it
    try:
        with host.training_mode():
            assert not products.allow_fp16_accumulation
        assert products.allow_fp16_accumulation
    finally:
        products.allow_fp16_accumulation = before
