"""The benches' models: their shapes, values, files and arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import comfy.model_detection
import comfy.sd
import comfy.supported_models
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench import models
from bench.models import MODELS

SIZES = {"kit": 25_789_444, "sd15": 859_520_964, "sdxl": 2_567_463_684, "flux": 11_901_408_320}


@pytest.mark.parametrize("name", MODELS)
def test_a_network_has_the_size_of_the_real_one(name: str):
    assert models.parameters(MODELS[name]) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd15", comfy.supported_models.SD15),
        ("sdxl", comfy.supported_models.SDXL),
        ("flux", comfy.supported_models.Flux),
    ],
)
def test_the_host_takes_a_file_for_what_it_is(name: str, kind: type):
    tensors, _ = list(models.files(MODELS[name]).values())[-1]
    prefix = "" if name == "flux" else "model.diffusion_model."
    assert type(comfy.model_detection.model_config_from_unet(tensors, prefix)) is kind


def test_flux_brings_its_text_encoders_and_vae():
    clip_l, t5, vae, _ = (tensors for tensors, _ in models.files(MODELS["flux"]).values())
    assert comfy.sd.detect_te_model(clip_l) is comfy.sd.TEModel.CLIP_L
    assert comfy.sd.detect_te_model(t5) is comfy.sd.TEModel.T5_XXL
    assert vae["decoder.conv_in.weight"].shape[1] == 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest SD1.5 that the host takes, written as the large ones are."""
    from kit.nets import UNET

    small = replace(MODELS["sd15"], network={**UNET, "transformer_depth_middle": -1})
    workspace = tmp_path_factory.mktemp("workspace")
    models.write_missing(small, workspace, lambda text: None)
    return small.path(workspace)


def test_a_file_holds_what_was_drawn(checkpoint: Path):
    tensors = load_file(checkpoint)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    norm = tensors["model.diffusion_model.out.0.weight"]
    assert norm.float().mean() == pytest.approx(1.0, abs=0.02)
    matrix = tensors["model.diffusion_model.time_embed.2.weight"].float()
    assert matrix.std() == pytest.approx(models.GAIN / 1280**0.5, rel=0.01)
    assert not list(checkpoint.parent.glob("*.part"))


def test_the_host_loads_a_file_whole(checkpoint: Path, caplog: pytest.LogCaptureFixture):
    with torch.inference_mode():
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]
        assert vae.encode(torch.rand(1, 32, 32, 3)).isfinite().all()
        assert clip.encode_from_tokens(clip.tokenize("a cat")).isfinite().all()
        assert all(weight.isfinite().all() for weight in model.model.diffusion_model.parameters())
    assert not [each for each in caplog.messages if "missing" in each.lower() or "unexpected" in each.lower()]


def test_8_bit_and_small_tensors_are_written_too(tmp_path: Path):
    like = {"a.weight": torch.empty(3, 5, device="meta"), "b": torch.tensor(2.5), "c": torch.arange(4)}
    models.write(tmp_path / "x.safetensors", like, torch.float8_e4m3fn, torch.device("cpu"))
    found = load_file(tmp_path / "x.safetensors")
    assert found["a.weight"].dtype == torch.float8_e4m3fn and found["a.weight"].shape == (3, 5)
    assert found["b"] == 2.5 and found["c"].tolist() == [0, 1, 2, 3]
    header = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert length % 8 == 0 and json.loads(header[8 : 8 + length])


def test_the_arithmetic_of_a_pass_is_that_of_its_layers():
    """Counted by hand, layer by layer: convolutions, linear layers and attention, two operations a product."""
    model = MODELS["kit"]
    side = model.side // 8
    by_hand = 0

    def count(layer: nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal by_hand
        if isinstance(layer, nn.Conv2d):
            by_hand += 2 * out.numel() * layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        else:
            assert isinstance(layer, nn.Linear)
            by_hand += 2 * out.numel() * layer.in_features

    net = models.network(model)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    blocks = [name for name, _ in net.named_modules() if name.endswith("transformer_blocks.0")]
    # a block of 320 channels attends to the picture and to the text: q k^T and the sum over v, each 2 n m 320
    by_hand += len(blocks) * 2 * 2 * side**2 * (side**2 + model.tokens) * 320
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "network", lambda _: net)
        assert models.forward_flops(model) == by_hand


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_a_pass_in_full_size_is_of_the_known_order(name: str):
    known = {"sd15": 0.80e12, "sdxl": 6.76e12, "flux": 69.5e12}[name]
    assert models.forward_flops(MODELS[name]) == pytest.approx(known, rel=0.01)
