"""Channels-last order across the boundary between a UNet's transformers (tokens) and its convolutions (pictures)."""

from typing import Any

import torch
from torch import nn


def stay_in_order(_: nn.Module, __: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Forward hook for a layer whose output tokens become a picture: the picture stays channels last.

    Tokens are channels last already. The host asks for contiguous order there, which costs a copy, another one before
    the next convolution, and both again in the backward pass.
    """
    return tokens.as_subclass(_Tokens)


class _Tokens(torch.Tensor):
    """Tokens (B, H * W, C) that turn the next `contiguous()` of their picture (B, C, H, W) into channels last.

    Operations other than changes of shape give plain tensors.
    """

    CHANGES_OF_SHAPE = (torch.Tensor.reshape, torch.Tensor.view, torch.Tensor.movedim, torch.Tensor.permute)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.contiguous and len(args) == 1 and not kwargs and args[0].dim() == 4:
                return args[0].contiguous(memory_format=torch.channels_last).as_subclass(torch.Tensor)
            result = func(*args, **(kwargs or {}))
            if not isinstance(result, torch.Tensor):
                return result
            return result.as_subclass(cls if func in cls.CHANGES_OF_SHAPE else torch.Tensor)
