"""What is NVIDIA's own is not asked of other GPUs, and nothing of a GPU is asked where there is none."""

from __future__ import annotations

import ctypes
import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from lora_kiln.training.basics.backends import backend_of
from lora_kiln.training.host import attention, products
from lora_kiln.training.host.device import kernel_obstacle
from lora_kiln.training.learning import engine

from training_runs import changed, run

GPU = torch.device("cuda", 0)
HARMLESS = ("is_available", "is_initialized", "device_count", "is_current_stream_capturing")
"""Functions of torch.cuda that answer without a GPU and that torch itself calls."""


def raising(*_: Any, **__: Any) -> Any:
    raise AssertionError("Torch not compiled with CUDA enabled")


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of torch.cuda raise."""
    for name in torch.cuda.__all__:
        each = getattr(torch.cuda, name, None)
        if callable(each) and not isinstance(each, type) and name not in HARMLESS:
            monkeypatch.setattr(torch.cuda, name, raising)


@pytest.fixture
def on_amd(without_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")


@pytest.mark.parametrize(
    ("device", "name"),
    [("cuda", "nvidia"), ("cpu", "cpu"), ("mps", "apple"), ("xpu", "intel"), ("meta", "meta")],
)
def test_a_device_has_one_backend(device: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    assert backend_of(torch.device(device)).name == name


def test_amds_gpus_are_not_asked_for_what_is_nvidias(on_amd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", raising)
    monkeypatch.setattr(attention, "has_kernels", lambda device: True)
    monkeypatch.setattr(import_module("lora_kiln.training.kernels"), "try_cross_attention", lambda *shape: None)
    assert backend_of(GPU).name == "amd"
    engine._trim_graph_memory(GPU)
    assert "NVIDIA" in products.fp8_matmul_obstacle.__wrapped__(GPU, torch.bfloat16)
    assert attention.runs_few_keys.__wrapped__(GPU, torch.bfloat16, 77, 64)


def test_a_missing_driver_library_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    engine._trim_graph_memory(GPU)


def test_without_triton_there_are_no_kernels_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in sys.modules if each.startswith("lora_kiln.training.kernels")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["lora_kiln.training"], "kernels", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton" in kernel_obstacle.__wrapped__(torch.device("meta"))


@pytest.mark.usefixtures("lora_folder", "without_cuda")
def test_a_run_on_the_cpu_asks_nothing_of_cuda() -> None:
    assert run(changed(steps=1, batch_size=1)).losses
