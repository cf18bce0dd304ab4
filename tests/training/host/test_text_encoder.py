"""Texts as the CLIP encodes them, and the trainable twin of its text encoders."""

from __future__ import annotations

import comfy.model_management
import torch
from lora_kiln.training import host

import models


def test_parentheses_are_text_in_a_caption_and_weights_in_a_prompt():
    clip = models.sd15().clip
    caption, escaped = (host.encode_text(clip, text)[0][0] for text in ("a (cat:1.5)", "a \\(cat:1.5\\)"))
    prompt = host.encode_text(clip, "a (cat:1.5)", is_prompt=True)[0][0]
    assert torch.equal(caption, escaped)
    assert torch.equal(caption, host.encode_text(clip, "a \\(cat:1.5\\)", is_prompt=True)[0][0])
    assert not torch.allclose(caption, prompt)


def test_the_twin_of_a_text_encoder_encodes_as_the_clip_does_with_its_lora():
    small = models.sdxl()
    key = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    plain = host.encode_text(small.clip, "a cat")[0][0]
    clip = small.clip.clone()
    clip.add_patches({key: ("diff", (torch.ones(models.WIDTH, models.WIDTH),))}, 0.1)
    with host.training_mode():
        twin = host.twin_of(clip.patcher, torch.float32)
        embedding, pooled = twin.encode_token_weights(small.clip.tokenize("a cat"))[:2]
    expected, options = host.encode_text(clip, "a cat")[0]
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert torch.allclose(embedding.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(pooled.cpu(), options["pooled_output"], rtol=1e-4, atol=1e-4)
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in twin.state_dict().values())


def test_the_twin_of_a_text_encoder_keeps_its_number_format():
    """Rounded once more it would train on other embeddings than those it is used with."""
    small = models.sdxl()
    with torch.inference_mode():
        comfy.model_management.archive_model_dtypes(small.clip.cond_stage_model.half())
    with host.training_mode():
        twin = host.trainable_text_encoder(small.clip)
        embedding = host.encode_text_with(small.clip, twin, "a cat")[0][0]
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.float16}
    assert torch.allclose(embedding, host.encode_text(small.clip, "a cat")[0][0], rtol=1e-5, atol=1e-5)
