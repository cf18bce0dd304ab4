"""The graph's text encoders with a backward pass."""

from typing import Any

from torch import nn

from .blocks import guard_residuals
from .conditioning import Conditioning, tokens_of
from .twin import twin_of

IN_PLACE_BLOCKS = ("CLIPLayer",)
"""Class names of blocks of text encoders that add in place to tensors which autograd has saved."""


def trainable_text_encoder(clip: Any) -> nn.Module:
    """A twin of the CLIP's text encoders with resident, frozen normal tensors; the CLIP itself is only read.

    The weights keep their number format and the arithmetic is float32, as in the host.
    """
    twin = twin_of(clip.patcher, None)
    guard_residuals(twin, IN_PLACE_BLOCKS)
    return twin


def encode_text_with(clip: Any, twin: Any, text: str, is_prompt: bool = False) -> Conditioning:
    """The conditioning that `encode_text` gives, computed by the twin, with gradients to what is attached to it.

    Args:
        clip: for its tokenizer and options (clip skip).
        twin: from `trainable_text_encoder`.
    """
    twin.reset_clip_options()
    if clip.layer_idx is not None:
        twin.set_clip_options({"layer": clip.layer_idx})
    twin.set_clip_options({"execution_device": clip.patcher.load_device})
    embedding, pooled, *extra = twin.encode_token_weights(tokens_of(clip, text, is_prompt))
    return [[embedding, {"pooled_output": pooled, **(extra[0] if extra else {})}]]


def clip_skip(clip: Any) -> int:
    """Which layer from the end the CLIP's output is taken from, where the graph chose one; 0 = the model's own."""
    return -clip.layer_idx if clip.layer_idx else 0
