"""The bound on GPU memory under Windows and WSL; `tests/test_gpu_memory.py` has it on a GPU."""

from __future__ import annotations

import platform
import sys

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.host.memory_bound import WDDM_RESERVE, fraction_of, overflows, reserve

GIB = 2**30
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("used", "free", "reserved", "fraction"),
    [(2, 20, 1, 21 / 24), (0, 24, 0, 1.0), (4, 22, 0, 1.0), (0, 1, 2, 0.0), (3, 0, 1, 2 / 24)],
)
def test_a_run_may_take_what_it_has_and_what_is_free_but_for_the_reserve(used, free, reserved, fraction) -> None:
    assert fraction_of(used * GIB, free * GIB, 24 * GIB, reserved * GIB) == pytest.approx(fraction)


@pytest.mark.parametrize(
    ("system", "release", "expected"),
    [
        ("win32", "11", True),
        ("linux", "5.15.153.1-microsoft-standard-WSL2", True),
        ("linux", "6.6.36.3-Microsoft-custom+", True),
        ("linux", "6.8.0-45-generic", False),
        ("darwin", "24.1.0", False),
    ],
)
def test_memory_overflows_under_windows_and_wsl(monkeypatch: pytest.MonkeyPatch, system, release, expected) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert overflows() == expected


def test_the_reserve_is_at_least_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    for asked in (0.0, 3.0 * GIB):
        monkeypatch.setattr(comfy.model_management, "EXTRA_RESERVED_VRAM", asked)
        assert reserve() == max(asked, WDDM_RESERVE)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A stand-in for the driver and allocator of a GPU of 24 GiB, 20 of them free: the fraction that is set."""
    state = {"fraction": 2.0**40}  # as of cudaMallocAsync, where no bound is set

    def set_fraction(fraction: float, device: torch.device) -> None:
        assert device == CUDA and 0.0 <= fraction <= 1.0
        state["fraction"] = fraction

    monkeypatch.setattr("lora_kiln.training.host.memory_bound.overflows", lambda: True)
    monkeypatch.setattr("lora_kiln.training.host.memory_bound.reserve", lambda: GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: state["fraction"], raising=False)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_fraction)
    return state


@pytest.mark.parametrize("end", [None, RuntimeError("broken"), host.Interrupted()])
def test_the_bound_goes_when_the_context_ends(gpu: dict[str, float], end: BaseException | None) -> None:
    try:
        with host.bounded_memory(CUDA):
            assert gpu["fraction"] == pytest.approx(21 / 24)
            if end is not None:
                raise end
    except BaseException as error:
        assert error is end
    assert gpu["fraction"] == 1.0


def test_a_smaller_bound_of_the_user_stays(gpu: dict[str, float]) -> None:
    gpu["fraction"] = 0.5
    with host.bounded_memory(CUDA):
        assert gpu["fraction"] == 0.5
    assert gpu["fraction"] == 0.5


def test_an_error_of_the_driver_hides_no_other(gpu: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fraction: float, device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(ValueError, match="first"), host.bounded_memory(CUDA):
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", broken)
        raise ValueError("first")


def test_other_devices_and_systems_have_none(gpu: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    with host.bounded_memory(torch.device("mps")):
        assert gpu["fraction"] > 1.0
    monkeypatch.setattr("lora_kiln.training.host.memory_bound.overflows", lambda: False)
    with host.bounded_memory(CUDA):
        assert gpu["fraction"] > 1.0
