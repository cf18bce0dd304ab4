"""The graph's CLIP: conditionings of texts, and a trainable twin of its text encoders."""

from typing import Any

from torch import nn

from .blocks import guard_residuals
from .modes import sampling_mode
from .tensors import normal_cpu_copy
from .twin import twin_of

Conditioning = list[Any]
"""ComfyUI's CONDITIONING: [[embedding, options], ...]"""

IN_PLACE_BLOCKS = ("CLIPLayer",)
"""Class names of blocks that add in place to tensors which autograd has saved."""


def encode_text(clip: Any, text: str, is_prompt: bool = False) -> Conditioning:
    """The CLIP's conditioning for a text, as normal CPU tensors.

    Args:
        is_prompt: parentheses weight words, as in the host's prompts; in captions they are plain text.
    """
    with sampling_mode():
        return normal_cpu_copy(clip.encode_from_tokens_scheduled(_tokens(clip, text, is_prompt)))


def trainable_text_encoder(clip: Any) -> nn.Module:
    """A twin of the CLIP's text encoders with frozen normal tensors; the CLIP itself is only read.

    The weights keep their number format and the arithmetic is float32, as in the host.
    """
    twin = twin_of(clip.patcher, None)
    guard_residuals(twin, IN_PLACE_BLOCKS)
    return twin


def encode_text_with(clip: Any, twin: Any, text: str, is_prompt: bool = False) -> Conditioning:
    """The conditioning of `encode_text`, computed by the twin, with gradients to the adapters on it.

    Args:
        clip: for its tokenizer and options (clip skip).
        twin: from `trainable_text_encoder`.
    """
    twin.reset_clip_options()
    if clip.layer_idx is not None:
        twin.set_clip_options({"layer": clip.layer_idx})
    twin.set_clip_options({"execution_device": clip.patcher.load_device})
    embedding, pooled, *extra = twin.encode_token_weights(_tokens(clip, text, is_prompt))
    return [[embedding, {"pooled_output": pooled, **(extra[0] if extra else {})}]]


def clip_skip(clip: Any) -> int:
    """The layer, counted from the end, whose output the CLIP gives if the graph set one; 0 = the model's default."""
    return -clip.layer_idx if clip.layer_idx else 0


def _tokens(clip: Any, text: str, is_prompt: bool) -> Any:
    if is_prompt:
        return clip.tokenize(text)
    text = text.replace("\\(", "(").replace("\\)", ")")
    try:
        return clip.tokenize(text, disable_weights=True)
    except TypeError:  # tokenizers without word weights set this option themselves and refuse it
        return clip.tokenize(text)
