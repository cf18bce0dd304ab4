"""What a device and a MODEL can compute in."""

from __future__ import annotations

import pytest
import torch
from lora_kiln.training import host, kernels
from lora_kiln.training.host.device import has_kernels, kernel_obstacle

import models


@pytest.mark.parametrize(
    ("make", "takes"),
    [
        (lambda: models.sd15().model, True), (lambda: models.sdxl().model, True),
        (models.qwen_image, False), (models.lumina2, False),
    ],
)  # fmt: skip
def test_models_that_the_host_keeps_from_fp16(make, takes: bool) -> None:
    assert host.takes_fp16(make()) == takes


def test_full_memory_is_no_reason_to_go_without_kernels_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("meta")
    kernel_obstacle.cache_clear()

    def full(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(kernels, "geglu", full)
        with pytest.raises(RuntimeError, match="out of memory"):
            has_kernels(device)
    monkeypatch.setattr(kernels, "geglu", lambda x: x)
    assert has_kernels(device)
    kernel_obstacle.cache_clear()
