"""Faster forms of layers: what they are put on, what they give, and that the host is as before."""

from __future__ import annotations

import comfy.ldm.flux.math
import pytest
import torch
from lora_kiln.training import host, kernels
from lora_kiln.training.host.fusion import default_eps, fits_rotation, fused_rotation, has_kernels, is_unchanged
from torch import nn
from torch.nn import functional as F

from host import has_cuda

DEVICE = torch.device("cuda" if has_cuda() else "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [0.03, 1.0])
def test_a_root_norm_that_is_told_nothing_adds_what_torchs_adds(dtype: torch.dtype, size: float) -> None:
    x = (size * torch.randn(4, 128, generator=torch.Generator().manual_seed(0))).to(dtype)
    told = F.rms_norm(x.float(), (128,), eps=default_eps(dtype, x.device))
    torch.testing.assert_close(F.rms_norm(x, (128,)).float(), told, rtol=1e-2, atol=1e-2)


def test_the_hosts_rotation_is_put_back_after_an_error() -> None:
    before = comfy.ldm.flux.math._apply_rope1
    with pytest.raises(RuntimeError, match="stop"), host.training_mode():
        assert comfy.ldm.flux.math._apply_rope1 is not before
        raise RuntimeError("stop")
    assert comfy.ldm.flux.math._apply_rope1 is before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [(1, 1, 6), (1, 1, 9), (2, 1, 6), (1, 3, 1)])
def test_it_gives_what_the_hosts_own_gives(dtype: torch.dtype, places: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, 16, generator=generator).to(DEVICE, dtype)
    turns = torch.randn(*places, 8, 2, 2, generator=generator).to(DEVICE)
    expected = comfy.ldm.flux.math._apply_rope1(x, turns)
    with fused_rotation():
        found = comfy.ldm.flux.math._apply_rope1(x, turns)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("turns", "fits"),
    [
        ((1, 1, 6, 8, 2, 2), True), ((2, 3, 6, 8, 2, 2), True), ((1, 1, 9, 8, 2, 2), True), ((1, 3, 1, 8, 2, 2), True),
        ((1, 1, 5, 8, 2, 2), False), ((1, 2, 6, 8, 2, 2), False), ((1, 1, 6, 4, 2, 2), False), ((6, 8, 2, 2), False),
    ],
)  # fmt: skip
def test_shapes_that_the_kernel_takes(turns: tuple[int, ...], fits: bool) -> None:
    assert fits_rotation((2, 3, 6, 16), turns) == fits


def test_what_other_nodes_changed_stays() -> None:
    layer = nn.GELU()
    assert is_unchanged(layer)
    layer.forward = lambda x: x
    assert not is_unchanged(layer)
    wrapped = nn.LayerNorm(4)
    wrapped.weight_function = [lambda weight: weight]
    assert not is_unchanged(wrapped)


def test_full_memory_is_no_reason_to_go_without_kernels_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("meta")  # which no other test asks about

    def full(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patched:
        patched.setattr(kernels, "geglu", full)
        with pytest.raises(torch.OutOfMemoryError):
            has_kernels(device)
    monkeypatch.setattr(kernels, "geglu", lambda x: x)
    assert has_kernels(device)
