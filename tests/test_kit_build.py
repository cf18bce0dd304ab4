"""The kit's stored weights: what quantising costs, the text encoder of the host, files small enough for git."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kit.nets import WEIGHTS, dequantise, load_parts, new_unet, new_vae, quantise, save_parts
from kit.text import END, LENGTH, START, TextEmbedding, Tokens, clip_state_dict

TEXTS = [
    "",
    "a big striped red circle on a blue ground, top",
    "a small gerzof above a ring, left",
    "on a white ground, a picture of Zork right of a moon",
]


def test_int8_is_within_half_a_step_of_each_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "conv.weight": torch.randn(8, 4, 3, 3, generator=generator) * torch.logspace(-4, 1, 8).view(8, 1, 1, 1),
        "linear.weight": torch.randn(16, 32, generator=generator) * 0.02,
        "dead.weight": torch.zeros(4, 4),
        "linear.bias": torch.randn(16, generator=generator),
    }
    stored = quantise(weights)
    assert stored["conv.weight"].dtype == torch.int8 and stored["conv.weight.scale"].shape == (8,)
    back = dequantise(stored)
    assert back.keys() == weights.keys()
    assert all(w.dtype == torch.half for w in back.values())
    for name, w in weights.items():
        step = w.flatten(1).abs().amax(1) / 127 if w.ndim > 1 else w.abs() / 1024
        bound = step * 0.56 + w.abs().amax() / 2048 * (w.ndim > 1) + 1e-7  # half a step, and what fp16 rounds
        error = (back[name].float() - w).abs()
        assert (error <= bound.view(-1, *[1] * (w.ndim - 1))).all(), name


def test_quantising_again_changes_nothing() -> None:
    weights = {"w": torch.randn(8, 64, generator=torch.Generator().manual_seed(1))}
    once = dequantise(quantise(weights))
    twice = dequantise(quantise(once))
    torch.testing.assert_close(once["w"], twice["w"], rtol=2e-3, atol=0)


def test_parts_hold_everything_below_the_limit(tmp_path: Path) -> None:
    weights = {f"w{i}": torch.full((100,), float(i)) for i in range(7)}
    paths = save_parts(weights, tmp_path, "unet", limit=1000)
    assert [path.name for path in paths] == [f"unet-{i}.safetensors" for i in range(1, 5)]
    assert all(sum(w.nbytes for w in load_parts([path]).values()) <= 1000 for path in paths)
    back = load_parts(tmp_path.glob("unet-*.safetensors"))
    assert back.keys() == weights.keys() and all(torch.equal(back[name], w) for name, w in weights.items())


def test_stored_weights_fit_the_networks_and_git() -> None:
    unet = dequantise(load_parts(WEIGHTS.glob("unet-*.safetensors")))
    expected = {name: w.shape for name, w in new_unet().state_dict().items()}
    assert {name: w.shape for name, w in unet.items()} == expected
    vae = load_parts([WEIGHTS / "vae.safetensors"])
    assert {name: w.shape for name, w in vae.items()} == {name: w.shape for name, w in new_vae().state_dict().items()}
    assert all(w.isfinite().all() for w in [*unet.values(), *vae.values()])
    sizes = [path.stat().st_size for path in WEIGHTS.glob("*.safetensors")]
    assert max(sizes) <= 15_000_000 and sum(sizes) <= 48_000_000


@pytest.fixture(scope="module")
def host_clip():  # noqa: ANN201
    """The host's CLIP with the generated text encoder."""
    import comfy.sd

    state: dict[str, Tensor] = clip_state_dict(prefix="text_model.")
    return comfy.sd.load_text_encoder_state_dicts([state], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)


def test_the_embedding_is_the_host_s(host_clip) -> None:  # noqa: ANN001
    mine = TextEmbedding()(Tokens()(TEXTS).long())
    theirs = torch.cat([host_clip.encode_from_tokens(host_clip.tokenize(text)) for text in TEXTS]).float().cpu()
    assert mine.shape == theirs.shape == (len(TEXTS), LENGTH, 768)
    torch.testing.assert_close(mine, theirs, atol=5e-3, rtol=0)


def test_the_tokens_are_the_host_s(host_clip) -> None:  # noqa: ANN001
    theirs = [[pair[0] for pair in host_clip.tokenize(text)["l"][0]] for text in TEXTS]
    mine = Tokens()(TEXTS)
    assert mine.tolist() == theirs
    assert (mine[:, 0] == START).all() and (mine[0, 1:] == END).all()
