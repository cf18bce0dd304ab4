"""Tokens become channels-last pictures without a copy."""

from __future__ import annotations

import comfy.ldm.flux.math
import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from lora_kiln.training.host.channels_last import stay_in_order
from torch import nn


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
