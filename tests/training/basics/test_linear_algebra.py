"""Factorisations and solutions, where the device computes them and where it does not."""

from __future__ import annotations

import pytest
import torch
from lora_kiln.training.basics import linear_algebra
from lora_kiln.training.basics.backends import OF_TYPES
from lora_kiln.training.basics.linear_algebra import qr, solve, svd

from device_without_float64 import DEVICE, WithoutFloat64


def matrix(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["cpu", "mps"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_algebra, "backend_of", lambda device: OF_TYPES[request.param])


def test_the_factors_give_the_matrix() -> None:
    a = matrix(6, 4)
    q, r = qr(a)
    u, s, vh = svd(a)
    assert q.shape == (6, 4) and torch.allclose(q @ r, a, atol=1e-5)
    assert torch.allclose(u * s @ vh, a, atol=1e-5) and s.tolist() == sorted(s.tolist(), reverse=True)


def test_a_solution_solves_and_has_gradients() -> None:
    a, b = (matrix(2, 3, 3) + 3 * torch.eye(3)).requires_grad_(), matrix(2, 3, 5).requires_grad_()
    x = solve(a, b)
    assert torch.allclose(a @ x, b, atol=1e-5)
    x.sum().backward()
    assert a.grad is not None and b.grad is not None
    assert torch.allclose(b.grad, torch.linalg.solve(a.mT, torch.ones_like(x)), atol=1e-5)
    assert torch.allclose(a.grad, -b.grad @ x.detach().mT, atol=1e-5)


def test_a_device_that_lacks_them_gets_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with WithoutFloat64():
        a = torch.zeros(6, 4, device=DEVICE)
        with pytest.raises(NotImplementedError):
            torch.linalg.qr(a)
        found = [*qr(a), *svd(a), solve(torch.zeros(2, 3, 3, device=DEVICE), torch.zeros(2, 3, 5, device=DEVICE))]
    assert {each.device for each in found} == {DEVICE}
    assert [tuple(each.shape) for each in found] == [(6, 4), (4, 4), (6, 4), (4,), (4, 4), (2, 3, 5)]
