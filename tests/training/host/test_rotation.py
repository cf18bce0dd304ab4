"""The fused rotary embedding gives what the host's function gives, and the function is restored."""

from __future__ import annotations

import comfy.ldm.flux.math
import comfy.ops
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.host.rotation import fits_rotation, fused_rotation

from host import has_cuda

DEVICE = torch.device("cuda" if has_cuda() else "cpu")


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
