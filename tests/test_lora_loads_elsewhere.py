"""A LoRA saved here does the same in diffusers, in peft and in the host's own loader."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.utils
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from lora_kiln.training import host
from lora_kiln.training.lora.export import DTYPES, as_format
from lora_kiln.training.lora.files import for_host, read_adapters, read_lora_file
from lora_kiln.training.lora.peft_dora import with_hosts_dora
from lora_kiln.training.lora.save import save_lora
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import models
from loras import random_lora
from models import SMALL_CLIP, WIDTH, Small, flux, sd3, sd15, sdxl

BLOCKS: dict[str, Any] = dict(
    sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(WIDTH, 2 * WIDTH),
    down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
)  # fmt: skip
TOLERANCE = {"fp32": 2e-5, "fp16": 1e-3, "bf16": 1e-2}


def diffusers_unet(small: Small) -> UNet2DConditionModel:
    """The same UNet in diffusers: every weight comes over by the host's own map."""
    if small.model.model.model_config.unet_config["use_linear_in_transformer"]:
        unet = UNet2DConditionModel(
            **BLOCKS, attention_head_dim=(2, 4), cross_attention_dim=2 * WIDTH, use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=WIDTH + 6 * 256,
        )  # fmt: skip
    else:
        unet = UNet2DConditionModel(**BLOCKS, attention_head_dim=4, cross_attention_dim=WIDTH)
    unet.load_state_dict(converted(small, comfy.utils.unet_to_diffusers, unet))
    return unet.eval()


def converted(small: Small, map_of, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The host's weights under diffusers' names."""
    weights = small.model.model.diffusion_model.state_dict()
    state = {}
    for name, entry in map_of(small.model.model.model_config.unet_config).items():
        key, rows, *changes = (entry, None) if isinstance(entry, str) else entry
        if key in weights and name in module.state_dict():
            tensor = weights[key].clone()
            tensor = tensor.narrow(*rows) if rows is not None else tensor
            tensor = changes[0](tensor) if changes else tensor
            state[name] = tensor.reshape(module.state_dict()[name].shape)
    return state


def text_encoder(small: Small, which: str) -> torch.nn.Module:
    """One of the CLIP's encoders in transformers."""
    config = CLIPTextConfig(**SMALL_CLIP, hidden_act="gelu" if which == "clip_g" else "quick_gelu", eos_token_id=49407)
    module = (CLIPTextModelWithProjection if which == "clip_g" else CLIPTextModel)(config)
    prefix = f"{which}.transformer."
    state = {
        key.removeprefix(prefix): tensor.clone()
        for key, tensor in small.clip.cond_stage_model.state_dict().items()
        if key.startswith(prefix)
    }
    known = module.state_dict().keys()
    if not any(key.startswith("text_model.") for key in known):  # as newer transformers name them
        state = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    module.load_state_dict({key: state[key] for key in known})
    return module.eval()


def pipeline(small: Small) -> Any:
    """A diffusers pipeline of the same weights, without a VAE."""
    parts = dict(unet=diffusers_unet(small), text_encoder=text_encoder(small, "clip_l"), tokenizer=None, vae=None)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    if hasattr(small.clip.cond_stage_model, "clip_g"):
        encoders = dict(text_encoder_2=text_encoder(small, "clip_g"), tokenizer_2=None)
        return StableDiffusionXLPipeline(**parts, **encoders, scheduler=scheduler)
    return StableDiffusionPipeline(
        **parts, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def inputs(small: Small, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    context = small.model.model.model_config.unet_config["context_dim"]
    values = dict(
        x=torch.randn(2, 4, 8, 8, generator=generator),
        timesteps=torch.tensor([17, 801]),
        context=torch.randn(2, 7, context, generator=generator),
    )
    if small.model.model.adm_channels:
        values["pooled"] = torch.randn(2, WIDTH, generator=generator)
        values["sizes"] = torch.tensor([[64.0, 64, 0, 8, 64, 64]] * 2)
    return values


def in_diffusers(unet: torch.nn.Module, x, timesteps, context, pooled=None, sizes=None) -> torch.Tensor:
    added = {} if pooled is None else dict(added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes})
    with torch.no_grad():
        return unet(x, timesteps, context, **added).sample


@contextmanager
def patched(patcher: Any) -> Iterator[None]:
    """The weights with the patches in them; the clones of a patcher share them."""
    patcher.unpatch_model()  # the host loads a CLIP when it is made
    patcher.patch_model()
    try:
        yield
    finally:
        patcher.unpatch_model()


def in_host(small: Small, model, x, timesteps, context, pooled=None, sizes=None) -> torch.Tensor:
    """The host's UNet with the patches of a MODEL put into its weights."""
    vector = {}
    if pooled is not None and sizes is not None:
        embedder = model.model.embedder
        vector = dict(y=torch.cat([pooled, *(embedder(column) for column in sizes.t())], dim=1))
    with patched(model), torch.inference_mode():
        return model.model.diffusion_model(x, timesteps, context, **vector).clone()


def host_text(small: Small, clip, which: str, tokens: torch.Tensor) -> torch.Tensor:
    with patched(clip.patcher), torch.inference_mode():
        return getattr(clip.cond_stage_model, which).transformer(tokens)[0].clone()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@pytest.fixture(scope="module", params=[sd15, sdxl], ids=["sd15", "sdxl"])
def small(request: pytest.FixtureRequest) -> Small:
    return request.param()


def test_the_two_models_are_the_same_without_a_lora(small: Small) -> None:
    values = inputs(small)
    assert distance(in_diffusers(diffusers_unet(small), **values), in_host(small, small.model, **values)) < 1e-5


@pytest.mark.parametrize(("form", "precision"), [("kohya", "fp32"), *(("diffusers", each) for each in DTYPES)])
def test_diffusers_gives_the_hosts_output(small: Small, tmp_path: Path, form: str, precision: str) -> None:
    """All layers, of the text encoders too; the host loads kohya's file, diffusers the one under test."""
    attention = {"wanted": is_attention} if form == "kohya" else {}  # diffusers drops kohya's other SDXL layers
    lora = random_lora(small, **attention)
    reference = save_lora(tmp_path / "kohya.safetensors", lora, {})
    model, clip = host.with_lora(small.model, small.clip, load_file(reference), 1.0)
    other = as_format(lora, form, precision=precision)
    pipe = pipeline(small)
    pipe.load_lora_weights(save_lora(tmp_path / "other.safetensors", other, {}))

    values = inputs(small)
    ours, plain = in_host(small, model, **values), in_host(small, small.model, **values)
    assert distance(ours, plain) > 0.05
    assert distance(in_diffusers(pipe.unet, **values), ours) < TOLERANCE[precision]
    tokens = torch.tensor([[49406, 320, 1125, 539, 320, 2368] + [49407] * 71])
    encoders = {"clip_l": pipe.text_encoder}
    if hasattr(pipe, "text_encoder_2"):
        encoders["clip_g"] = pipe.text_encoder_2
    for which, encoder in encoders.items():
        expected = host_text(small, clip, which, tokens)
        assert distance(expected, host_text(small, small.clip, which, tokens)) > 0.02
        with torch.no_grad():
            assert distance(encoder(tokens)[0 if which == "clip_l" else 1], expected) < TOLERANCE[precision]


def is_attention(key: str, shape: tuple[int, ...]) -> bool:
    words = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "self_attn", "ff.net.0.proj", "ff.net.2")
    return any(word in key for word in words)


def test_ranks_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    small = sd15()
    lora = random_lora(small, rank=2, alpha=5.0)
    wider = random_lora(small, rank=6, alpha=2.0)
    lora.update({key: tensor for key, tensor in wider.items() if "attn2" in key or "mid_block" in key})
    model, _ = host.with_lora(small.model, None, {k: v for k, v in lora.items() if "lora_unet" in k}, 1.0)
    pipe = pipeline(small)
    pipe.load_lora_weights(save_lora(tmp_path / "a.safetensors", as_format(lora, "diffusers"), {}))
    values = inputs(small)
    assert distance(in_diffusers(pipe.unet, **values), in_host(small, model, **values)) < TOLERANCE["fp32"]


def peft_form(lora: Mapping[str, torch.Tensor], component: str) -> dict[str, torch.Tensor]:
    form = as_format(lora, "diffusers")
    return {key.removeprefix(f"{component}."): t for key, t in form.items() if key.startswith(f"{component}.")}


def test_peft_takes_diffusers_form_whole(small: Small) -> None:
    lora = random_lora(small)
    model, _ = host.with_lora(small.model, None, {k: v for k, v in lora.items() if "lora_unet" in k}, 1.0)
    state = convert_unet_state_dict_to_peft(peft_form(lora, "unet"))
    unet = diffusers_unet(small)
    modules = sorted({key.split(".lora_")[0] for key in state})
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=modules), unet)
    result = set_peft_model_state_dict(unet, state)
    assert result.unexpected_keys == []
    assert [key for key in result.missing_keys if "lora" in key] == []
    values = inputs(small)
    assert distance(in_diffusers(unet, **values), in_host(small, model, **values)) < TOLERANCE["fp32"]


# ---------------------------------------------------------------- fused layers


def diffusers_transformer(small: Small) -> torch.nn.Module:
    """SD3's or Flux's transformer in diffusers, with the same weights."""
    config = small.model.model.model_config.unet_config
    if config.get("image_model") == "flux":
        module = FluxTransformer2DModel(
            patch_size=1, in_channels=64, num_layers=config["depth"], num_single_layers=config["depth_single_blocks"],
            attention_head_dim=32, num_attention_heads=2, joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH,
            guidance_embeds=True, axes_dims_rope=(8, 12, 12),
        )  # fmt: skip
        map_of = comfy.utils.flux_to_diffusers
    else:
        module = SD3Transformer2DModel(
            sample_size=32, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=64, num_attention_heads=2,
            joint_attention_dim=4096, caption_projection_dim=128, pooled_projection_dim=2 * WIDTH, out_channels=16,
            pos_embed_max_size=16, qk_norm="rms_norm",
        )  # fmt: skip
        map_of = comfy.utils.mmdit_to_diffusers
    state = converted(small, map_of, module)
    missing = module.load_state_dict(state, strict=False).missing_keys
    assert all("norm" in key or "pos_embed" in key for key in missing), missing
    return module.eval()


@pytest.mark.parametrize("make", [sd3, flux], ids=["sd3", "flux"])
def test_the_split_form_changes_each_of_diffusers_weights_as_the_host_changes_its_own(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights after the LoRA, module by module: q, k and v of a fused layer, swapped rows and all."""
    monkeypatch.setitem(models.FLUX, "mlp_ratio", 4.0)  # the only one that diffusers knows
    small = make()
    lora = random_lora(small)
    changed = make()
    model, _ = host.with_lora(changed.model, None, {k: v for k, v in lora.items() if "lora_unet" in k}, 1.0)
    module = diffusers_transformer(small)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    changes = peft_form(lora, "transformer")
    map_of = comfy.utils.flux_to_diffusers if make is flux else comfy.utils.mmdit_to_diffusers
    with patched(model):
        expected = converted(changed, map_of, module)
    adapted = {key.removesuffix(".lora_A.weight") for key in changes if key.endswith("lora_A.weight")}
    assert len(adapted) > 20
    for name in adapted:
        difference = changes[f"{name}.lora_B.weight"].flatten(1) @ changes[f"{name}.lora_A.weight"].flatten(1)
        weight = before[f"{name}.weight"]
        adapted_weight = weight + difference.reshape(weight.shape)
        assert distance(adapted_weight, weight) > 0.01
        torch.testing.assert_close(adapted_weight, expected[f"{name}.weight"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [sd15, sdxl, sd3, flux], ids=["sd15", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("form", ["kohya", "comfyui", "diffusers"])
def test_the_host_loads_every_key(make, form: str, caplog: pytest.LogCaptureFixture) -> None:
    small = make()
    lora = random_lora(small)
    with caplog.at_level(logging.WARNING):
        model, clip = host.with_lora(small.model, small.clip, as_format(lora, form), 1.0)
    assert "not loaded" not in caplog.text.lower()
    names = host.layer_names(small.model, small.clip)
    loaded = {*model.patches, *clip.patcher.patches}
    assert loaded == {key for key, layer in names.items() if f"{layer.kohya}.alpha" in lora}


# ---------------------------------------------------------------- the other way


def test_a_dora_of_diffusers_does_the_same_in_the_host(tmp_path: Path) -> None:
    """As diffusers' scripts write it with peft's use_dora: read, and converted by the model's weights."""
    small = sd15()
    unet = diffusers_unet(small)
    modules = ["attn1.to_q", "attn2.to_out.0", "proj_in", "conv1", "ff.net.2"]
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=modules), unet)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        if "magnitude" in name:
            parameter.data *= 0.5 + torch.rand(parameter.shape, generator=generator)
    state = {f"unet.{key}": tensor.contiguous() for key, tensor in get_peft_model_state_dict(unet).items()}
    path = tmp_path / "dora.safetensors"
    save_file(state, path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 3, "unet.r": 2})})

    names = host.layer_names(small.model)
    lora = with_hosts_dora(read_lora_file(path), names, small.model, None)
    found = read_adapters(lora, names)
    assert found.unknown == [] and {adapter.kind for adapter in found.adapters.values()} == {"dora"}
    assert len(found.adapters) == sum("magnitude" in key for key in state) > 10
    model, _ = host.with_lora(small.model, None, for_host(lora, names), 1.0)
    values = inputs(small)
    assert distance(in_host(small, model, **values), in_host(small, small.model, **values)) > 0.05
    assert distance(in_diffusers(unet, **values), in_host(small, model, **values)) < TOLERANCE["fp32"]


def test_a_dora_of_diffusers_on_rows_of_a_fused_layer_does_the_same_in_the_host() -> None:
    """k of joined q, k and v, and halves in the other order."""
    small = sd3()
    module = diffusers_transformer(small)
    expected = converted(small, comfy.utils.mmdit_to_diffusers, module)
    generator = torch.Generator().manual_seed(0)
    lora = {}
    for part in ("transformer_blocks.0.attn.to_k", "norm_out.linear"):
        weight = expected[f"{part}.weight"]
        down = torch.randn(2, weight.shape[1], generator=generator)
        up, norms = torch.randn(len(weight), 2, generator=generator), torch.rand(len(weight), generator=generator)
        changed = weight + up @ down
        expected[f"{part}.weight"] = changed * (norms / changed.norm(dim=1))[:, None]
        path = f"transformer.{part}"
        lora |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up, f"{path}.lora_magnitude_vector": norms}
    names = host.layer_names(small.model)
    model, _ = host.with_lora(small.model, None, for_host(with_hosts_dora(lora, names, small.model, None), names), 1.0)
    with patched(model):
        ours = converted(small, comfy.utils.mmdit_to_diffusers, module)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-4, msg=name)
