"""Fused layers: which layers get them, and what they compute."""

from __future__ import annotations

import comfy.ops
import pytest
import torch
from comfy.ldm.cascade.common import LayerNorm2d_op
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from lora_kiln.training.host.fusion import default_eps, is_unchanged, is_usual, move_biases
from torch import nn
from torch.nn import functional as F


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [0.03, 1.0])
def test_a_root_norm_that_is_told_nothing_adds_what_torchs_adds(dtype: torch.dtype, size: float) -> None:
    x = (size * torch.randn(4, 128, generator=torch.Generator().manual_seed(0))).to(dtype)
    told = F.rms_norm(x.float(), (128,), eps=default_eps(dtype, x.device))
    torch.testing.assert_close(F.rms_norm(x, (128,)).float(), told, rtol=1e-2, atol=1e-2)


def test_what_other_nodes_changed_stays() -> None:
    layer = nn.GELU()
    assert is_unchanged(layer)
    layer.forward = lambda x: x
    assert not is_unchanged(layer)
    wrapped = nn.LayerNorm(4)
    wrapped.weight_function = [lambda weight: weight]
    assert not is_unchanged(wrapped)


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
