"""Deterministic kernels are asked for while the context lasts, and only then."""

import os
import threading

import pytest
import torch
from lora_kiln.training.basics.determinism import CUBLAS_WORKSPACE, deterministic_kernels


def settings() -> tuple[bool, bool, bool, str | None]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        os.environ.get(CUBLAS_WORKSPACE),
    )


def test_they_are_on_inside_and_as_before_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    before = settings()
    with deterministic_kernels(True):
        assert settings() == (True, True, False, ":4096:8")
    assert settings() == before


def test_they_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    before = settings()
    with pytest.raises(ZeroDivisionError), deterministic_kernels(True):
        assert os.environ[CUBLAS_WORKSPACE] == ":16:8"
        raise ZeroDivisionError
    assert settings() == before


def test_off_changes_nothing() -> None:
    before = settings()
    with deterministic_kernels(False):
        assert settings() == before


@pytest.mark.gpu
def test_the_backward_pass_runs_in_the_calling_thread() -> None:
    threads = []
    leaf = torch.ones(2, device="cuda", requires_grad=True)
    with deterministic_kernels(True):
        over_the_cpu = (leaf * 2).cpu().to("cuda")
        doubled = over_the_cpu * 3
        doubled.register_hook(lambda gradient: threads.append(threading.get_ident()))
        doubled.sum().backward()
    assert threads == [threading.get_ident()]
