"""Faster forms of layers: what they are put on, what they give, and that the host is as before."""

from __future__ import annotations

import comfy.ldm.flux.math
import comfy.ops
import pytest
import torch
from comfy.ldm.cascade.common import LayerNorm2d_op
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from lora_kiln.training import host, kernels
from lora_kiln.training.host.attention import fits_few_keys, runs_few_keys
from lora_kiln.training.host.device import has_kernels, kernel_obstacle
from lora_kiln.training.host.fusion import (
    default_eps,
    fits_rotation,
    fused_rotation,
    is_unchanged,
    is_usual,
    move_biases,
    stay_in_order,
)
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
    device = torch.device("meta")
    kernel_obstacle.cache_clear()

    def full(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patched:
        patched.setattr(kernels, "geglu", full)
        with pytest.raises(torch.OutOfMemoryError):
            has_kernels(device)
    monkeypatch.setattr(kernels, "geglu", lambda x: x)
    assert has_kernels(device)
    kernel_obstacle.cache_clear()


@pytest.mark.parametrize("capability", [(7, 5), (8, 6)])
@pytest.mark.parametrize("works", [True, False])
def test_attention_to_few_keys_is_tried_once_where_it_may_run_and_a_failure_is_said(
    capability: tuple[int, int], works: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = []

    def trial(*shape: object) -> None:
        tries.append(shape)
        if not works:
            raise RuntimeError("out of resource: shared memory\nand more")

    runs_few_keys.cache_clear()
    kernel_obstacle.cache_clear()
    caplog.set_level("INFO")
    monkeypatch.setattr(kernels, "geglu", lambda x: x)
    monkeypatch.setattr(kernels, "try_cross_attention", trial)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = {runs_few_keys(torch.device("meta"), torch.bfloat16, 77, 64) for _ in range(3)}
    runs_few_keys.cache_clear()
    kernel_obstacle.cache_clear()
    is_new = capability >= (8, 0)
    assert found == {is_new and works} and len(tries) == is_new
    said = [record.getMessage() for record in caplog.records if "captions" in record.getMessage()]
    assert len(said) == (is_new and not works) and all(each.endswith("shared memory") for each in said)


@pytest.mark.parametrize("use_linear", [False, True])
def test_tokens_become_a_picture_without_another_order(use_linear: bool) -> None:
    torch.manual_seed(0)
    made = SpatialTransformer(
        32, 2, 16, depth=2, context_dim=8, use_linear=use_linear, operations=comfy.ops.disable_weight_init
    )
    for parameter in made.parameters():
        parameter.data.normal_(std=0.2)
        parameter.requires_grad_(False)
    x, context = torch.randn(2, 32, 4, 6).contiguous(memory_format=torch.channels_last), torch.randn(2, 5, 8)
    found, order = [], []
    made.proj_out.register_forward_pre_hook(
        lambda _, given: order.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    for stays in (False, True):
        if stays:
            last = made.proj_out if use_linear else made.transformer_blocks[-1]
            last.register_forward_hook(stay_in_order)
        own = x.clone().requires_grad_()
        output = made(own, context)
        output.square().sum().backward()
        assert type(output) is torch.Tensor and type(own.grad) is torch.Tensor
        assert use_linear or order[-1] == stays  # of the convolution's input
        assert not (stays and use_linear) or output.is_contiguous(memory_format=torch.channels_last)
        found.append((output.detach(), own.grad))
    torch.testing.assert_close(found[0], found[1])


def test_tokens_are_plain_again_for_whatever_else_is_done_with_them() -> None:
    tokens = stay_in_order(nn.Identity(), (), torch.randn(2, 6, 4))
    for plain in (tokens + 1, tokens.flatten(0), torch.cat([tokens, tokens]), tokens.contiguous(), tokens.float() * 2):
        assert type(plain) is torch.Tensor
    picture = tokens.reshape(2, 2, 3, 4).movedim(3, 1)
    assert picture.contiguous().is_contiguous(memory_format=torch.channels_last)
    assert picture.contiguous(memory_format=torch.contiguous_format).is_contiguous()


def residual_block(wider: bool, **options: bool) -> ResBlock:
    torch.manual_seed(0)
    made = ResBlock(32, 16, 0.0, 64 if wider else 32, operations=comfy.ops.disable_weight_init, **options)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.2)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("wider", [False, True])
@pytest.mark.parametrize("options", [{}, {"use_scale_shift_norm": True}, {"skip_t_emb": True}, {"down": True}])
def test_biases_are_added_elsewhere_and_give_the_same(wider: bool, options: dict[str, bool]) -> None:
    block, x, emb = residual_block(wider, **options), torch.randn(2, 32, 4, 4), torch.randn(2, 16)
    expected = block(x, emb)
    move_biases(block)
    torch.testing.assert_close(block(x, emb), expected)
    is_added_to_time = not ({"use_scale_shift_norm", "skip_t_emb"} & options.keys())
    assert (block.in_layers[-1].bias is None) == is_added_to_time
    assert (block.out_layers[-1].bias is None) == wider


def test_a_bias_that_others_changed_stays() -> None:
    block = residual_block(True)
    block.skip_connection.bias_function = [lambda bias: bias + 1]
    block.emb_layers[-1].forward = block.emb_layers[-1].forward
    move_biases(block)
    assert block.in_layers[-1].bias is not None and block.out_layers[-1].bias is not None


def test_biases_in_half_precision_stay_near_those_of_full() -> None:
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 16)
    exact = residual_block(True)(x, emb)
    usual = residual_block(True).bfloat16()
    moved = residual_block(True).bfloat16()
    move_biases(moved)
    error, without = (((b(x.bfloat16(), emb.bfloat16()) - exact).norm() / exact.norm()) for b in (moved, usual))
    assert error < 1.2 * without


def test_a_norm_made_of_the_usual_one_is_another() -> None:
    ops = comfy.ops.disable_weight_init
    assert all(map(is_usual, (ops.LayerNorm(4), nn.LayerNorm(4), ops.GroupNorm(2, 4), nn.RMSNorm(4), nn.GELU())))
    assert not is_usual(LayerNorm2d_op(ops)(4))


def heads(length: int, batch: int = 2, number: int = 3, width: int = 64) -> torch.Tensor:
    return torch.zeros(batch, number, length, width)


@pytest.mark.parametrize(
    ("q", "k", "v", "fits"),
    [
        (heads(200), heads(77), heads(77), True), (heads(256), heads(128), heads(128), True),
        (heads(100), heads(77), heads(77), False), (heads(999), heads(129), heads(129), False),
        (heads(200), heads(0), heads(0), False), (heads(200), heads(77), heads(78), False),
        (heads(200), heads(77, batch=1), heads(77, batch=1), False),
        (heads(200), heads(9, number=1), heads(9, number=1), False),
        (heads(200), heads(77), heads(77, width=128), False), (heads(200), heads(77).half(), heads(77).half(), False),
        (heads(900, width=160), heads(77, width=160), heads(77, width=160), False),
        (heads(8, 70000, 1, 16), heads(1, 70000, 1, 16), heads(1, 70000, 1, 16), False),
    ],
)  # fmt: skip
def test_attention_that_the_kernel_takes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, fits: bool) -> None:
    assert fits_few_keys(q, k, v) == fits
