"""What a device and a MODEL can compute in."""

from __future__ import annotations

import platform
from collections.abc import Callable
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host, kernels
from lora_kiln.training.host.device import has_kernels, kernel_obstacle

import models

Start = Callable[[pytest.MonkeyPatch], torch.device]


@pytest.mark.parametrize(
    ("make", "takes"),
    [
        (lambda: models.sd15().model, True), (lambda: models.sdxl().model, True),
        (models.qwen_image, False), (models.lumina2, False),
    ],
)  # fmt: skip
def test_models_that_the_host_keeps_from_fp16(make, takes: bool) -> None:
    assert host.takes_fp16(make()) == takes


def on_mac(version: str) -> Start:
    def start(patch: pytest.MonkeyPatch) -> torch.device:
        patch.setattr(comfy.model_management, "cpu_state", comfy.model_management.CPUState.MPS)
        patch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
        return torch.device("mps")

    return start


def on_amd(architecture: str) -> Start:
    def start(patch: pytest.MonkeyPatch) -> torch.device:
        facts = SimpleNamespace(gcnArchName=architecture, major=int(architecture[3:-2]), total_memory=2**34)
        patch.setattr(comfy.model_management, "cpu_state", comfy.model_management.CPUState.GPU)
        patch.setattr(torch.version, "hip", "6.4")
        patch.setattr(torch.version, "cuda", None)
        patch.setattr(torch.cuda, "get_device_properties", lambda device=None: facts)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)  # what torch says of all
        return torch.device("cuda", 0)

    return start


def on_intel(patch: pytest.MonkeyPatch) -> torch.device:
    patch.setattr(comfy.model_management, "cpu_state", comfy.model_management.CPUState.GPU)
    patch.setattr(comfy.model_management, "xpu_available", True)
    patch.setattr(torch.xpu, "is_bf16_supported", lambda: True)
    return torch.device("xpu", 0)


@pytest.mark.parametrize(
    ("start", "dtype"),
    [
        (lambda patch: torch.device("cpu"), torch.float32), (on_mac("15.1"), torch.bfloat16),
        (on_mac("13.6"), torch.float32), (on_intel, torch.bfloat16), (on_amd("gfx1100"), torch.bfloat16),
        (on_amd("gfx1030"), torch.float32),
    ],
    ids=["cpu", "macOS 15", "macOS 13", "Arc", "RDNA 3", "RDNA 2"],
)  # fmt: skip
def test_auto_precision_is_bf16_where_the_host_uses_it(
    start: Start, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SimpleNamespace(load_device=start(monkeypatch))
    assert host.training_dtype(model, "auto") == dtype


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
