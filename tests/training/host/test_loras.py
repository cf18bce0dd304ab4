"""Key names at full size, module by module, against the rules written out here and against diffusers' own models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models
import comfy.text_encoders.flux
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import diffusers
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import find_targets

import models
from loras import random_lora
from models import sd15, sdxl

UNET: dict[str, Any] = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_spatial_transformer": True,
    "legacy": False, "dtype": torch.float32,
}  # fmt: skip
SD_BLOCKS: dict[str, Any] = {
    **UNET, "num_res_blocks": [2, 2, 2, 2], "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
}  # fmt: skip


@dataclass
class FullSize:
    """A model as large as the real one, on the meta device."""

    model: Any
    clip: Any

    @property
    def names(self) -> dict[str, Any]:
        return host.layer_names(self.model, self.clip)


def full_size(config: Any, text_encoder: Callable[[], torch.nn.Module] | None = None) -> FullSize:
    config.set_inference_dtype(torch.float32, None)
    with torch.device("meta"):
        base = config.get_model({}, "", device="meta")
        clip = None
        if text_encoder is not None:
            clip = comfy.sd.CLIP(no_init=True)
            clip.cond_stage_model = text_encoder()
    return FullSize(comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu")), clip)


def make_sd15() -> FullSize:
    config = comfy.supported_models.SD15({**SD_BLOCKS, "context_dim": 768, "use_linear_in_transformer": False})
    config.unet_config.update(num_heads=8, num_head_channels=-1)
    return full_size(config, lambda: comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float32))


def make_sd2() -> FullSize:
    config = comfy.supported_models.SD20({**SD_BLOCKS, "context_dim": 1024, "use_linear_in_transformer": True})
    config.unet_config.update(num_heads=-1, num_head_channels=64)
    make = comfy.text_encoders.sd2_clip.SD2ClipModel
    return full_size(config, lambda: make(device="meta", dtype=torch.float32))


def make_sdxl() -> FullSize:
    config = comfy.supported_models.SDXL(
        {
            **UNET, "num_res_blocks": [2, 2, 2], "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
            "context_dim": 2048, "use_linear_in_transformer": True, "num_classes": "sequential",
            "adm_in_channels": 2816,
        }
    )  # fmt: skip
    config.unet_config.update(num_heads=-1, num_head_channels=64)
    return full_size(config, lambda: comfy.sdxl_clip.SDXLClipModel(device="meta", dtype=torch.float32))


def make_sd3() -> FullSize:
    config = comfy.supported_models.SD3(
        {
            "in_channels": 16, "patch_size": 2, "depth": 24, "num_patches": 36864, "pos_embed_max_size": 192,
            "input_size": None, "adm_in_channels": 2048, "pos_embed_scaling_factor": None,
            "context_embedder_config": models._linear(4096, 1536),
        }
    )  # fmt: skip
    make = comfy.text_encoders.sd3_clip.sd3_clip(clip_l=True, clip_g=True, t5=True)
    return full_size(config, lambda: make(device="meta", dtype=torch.float32))


def make_flux() -> FullSize:
    config = comfy.supported_models.Flux(
        {
            "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768,
            "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19,
            "depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True,
            "guidance_embed": True, "txt_ids_dims": [],
        }
    )  # fmt: skip
    make = comfy.text_encoders.flux.flux_clip()
    return full_size(config, lambda: make(device="meta", dtype=torch.float32))


MAKERS = {"sd15": make_sd15, "sd2": make_sd2, "sdxl": make_sdxl, "sd3": make_sd3, "flux": make_flux}


@pytest.fixture(scope="module")
def made() -> Callable[[str], FullSize]:
    cache: dict[str, FullSize] = {}

    def get(name: str) -> FullSize:
        if name not in cache:
            cache[name] = MAKERS[name]()
        return cache[name]

    return get


# ---------------------------------------------------------------- the rules, from block counts


def in_transformers(block: str, depth: int) -> set[str]:
    """A spatial transformer's linear layers and 1x1 convolutions."""
    attention = [f"{a}_{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out_0")]
    layers = [f"transformer_blocks_{t}_{m}" for t in range(depth) for m in (*attention, "ff_net_0_proj", "ff_net_2")]
    return {f"lora_unet_{block}_{layer}" for layer in ("proj_in", "proj_out", *layers)}


def joined(*sets: set[str]) -> set[str]:
    return set().union(*sets)


def sd1_unet() -> set[str]:
    down = [f"down_blocks_{b}_attentions_{a}" for b in (0, 1, 2) for a in (0, 1)]
    up = [f"up_blocks_{b}_attentions_{a}" for b in (1, 2, 3) for a in (0, 1, 2)]
    return joined(*(in_transformers(block, 1) for block in (*down, "mid_block_attentions_0", *up)))


def sdxl_unet() -> set[str]:
    depths = {"input_blocks_4_1": 2, "input_blocks_5_1": 2, "input_blocks_7_1": 10, "input_blocks_8_1": 10}
    depths |= {"middle_block_1": 10, **{f"output_blocks_{n}_1": 10 if n < 3 else 2 for n in range(6)}}
    return joined(*(in_transformers(block, depth) for block, depth in depths.items()))


def sd3_transformer() -> set[str]:
    layers = {"attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2", "adaLN_modulation_1"}
    names = {
        f"joint_blocks_{n}_{side}_{la}" for n in range(24) for side in ("x_block", "context_block") for la in layers
    }
    last = {f"joint_blocks_23_context_block_{layer}" for layer in ("attn_proj", "mlp_fc1", "mlp_fc2")}
    return {f"lora_unet_{name}" for name in names - last}


def flux_transformer() -> set[str]:
    layers = ("attn_qkv", "attn_proj", "mlp_0", "mlp_2", "mod_lin")
    double = {f"double_blocks_{n}_{side}_{layer}" for n in range(19) for side in ("img", "txt") for layer in layers}
    single = {f"single_blocks_{n}_{layer}" for n in range(38) for layer in ("linear1", "linear2", "modulation_lin")}
    return {f"lora_unet_{name}" for name in double | single}


def clip_text(prefix: str, layers: int) -> set[str]:
    modules = [f"self_attn_{p}_proj" for p in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
    return {f"{prefix}_text_model_encoder_layers_{n}_{module}" for n in range(layers) for module in modules}


def t5_text(prefix: str) -> set[str]:
    names = set()
    for n in range(24):
        names |= {f"{prefix}_encoder_block_{n}_layer_0_SelfAttention_{p}" for p in "qkvo"}
        names |= {f"{prefix}_encoder_block_{n}_layer_1_DenseReluDense_{p}" for p in ("wi_0", "wi_1", "wo")}
    return names


EXPECTED = {
    "sd15": (sd1_unet, clip_text("lora_te", 12), 192, 72),
    "sd2": (sd1_unet, clip_text("lora_te", 24), 192, 144),
    "sdxl": (sdxl_unet, clip_text("lora_te1", 12) | clip_text("lora_te2", 32), 722, 264),
    "sd3": (sd3_transformer, clip_text("lora_te1", 12) | clip_text("lora_te2", 32) | t5_text("lora_te3"), 237, 432),
    "flux": (flux_transformer, clip_text("lora_te1", 12) | t5_text("lora_te3"), 304, 240),
}


@pytest.mark.parametrize("family", EXPECTED)
def test_kohyas_names_follow_the_rules(family: str, made) -> None:
    unet, text, unet_count, text_count = EXPECTED[family]
    assert (len(unet()), len(text)) == (unet_count, text_count)
    names = made(family).names
    model_names = [layer.kohya for key, layer in names.items() if key.startswith("diffusion_model.")]
    text_names = [layer.kohya for key, layer in names.items() if not key.startswith("diffusion_model.")]
    assert unet() <= set(model_names)
    assert text <= set(text_names)
    assert len({layer.kohya for layer in names.values()}) == len(names)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_attention_and_feed_forward_are_what_kohya_trains_by_default(family: str, made) -> None:
    full = made(family)
    found = find_targets(full.model.model, "attention and feed-forward")
    names = full.names
    assert {names[target.key].kohya for target in found} == EXPECTED[family][0]()


@pytest.mark.parametrize("family", MAKERS)
def test_the_host_maps_each_name_to_the_same_weight(family: str, made) -> None:
    full = made(family)
    by_name = comfy.lora.model_lora_keys_unet(full.model.model, {})
    by_name = comfy.lora.model_lora_keys_clip(full.clip.cond_stage_model, by_name)
    for key, layer in full.names.items():
        assert by_name[layer.kohya] == key
        assert by_name[layer.comfy] == key


DIFFUSERS: dict[str, Callable[[], torch.nn.Module]] = {
    "sd15": lambda: UNet2DConditionModel(cross_attention_dim=768),
    "sd2": lambda: UNet2DConditionModel(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    ),
    "sdxl": lambda: UNet2DConditionModel(
        block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20), cross_attention_dim=2048, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    ),
    "sd3": lambda: SD3Transformer2DModel(
        sample_size=128, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192,
    ),
    "flux": lambda: FluxTransformer2DModel(guidance_embeds=True),
}  # fmt: skip


@pytest.mark.parametrize("family", DIFFUSERS)
def test_diffusers_has_each_part_of_that_size(family: str, made) -> None:
    """Every linear layer and convolution of diffusers' model is named, with the rows and the inputs it has there."""
    with torch.device("meta"):
        module = DIFFUSERS[family]()
    prefix = "transformer" if family in ("sd3", "flux") else "unet"
    rows: dict[str, int] = {}
    inputs: dict[str, int] = {}
    for key, layer in made(family).names.items():
        if key.startswith("diffusion_model.") and len(layer.shape) > 1:
            assert layer.diffusers, key
            for path, _, length in layer.diffusers:
                rows[path] = rows.get(path, 0) + length
                inputs[path] = torch.Size(layer.shape[1:]).numel()
    expected = {
        f"{prefix}.{name}": tuple(part.weight.flatten(1).shape)
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
    }
    assert {path: (rows[path], inputs[path]) for path in rows} == expected


def test_text_encoders_are_numbered_as_in_diffusers(made) -> None:
    for family, which, prefix in (
        ("sd15", "clip_l", "text_encoder"),
        ("sd2", "clip_h", "text_encoder"),
        ("sdxl", "clip_l", "text_encoder"),
        ("sdxl", "clip_g", "text_encoder_2"),
        ("sd3", "clip_g", "text_encoder_2"),
        ("flux", "clip_l", "text_encoder"),
    ):
        layer = made(family).names[f"{which}.transformer.text_model.encoder.layers.3.mlp.fc1.weight"]
        assert layer.diffusers == ((f"{prefix}.text_model.encoder.layers.3.mlp.fc1", 0, layer.shape[0]),)


@pytest.mark.parametrize(
    ("family", "version", "architecture"),
    [
        ("sd15", "sd_v1", "stable-diffusion-v1"),
        ("sd2", "sd_v2", "stable-diffusion-v2-512"),
        ("sdxl", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
        ("sd3", "sd3_m", "stable-diffusion-3-medium"),
        ("flux", "flux1", "flux-1-dev"),
    ],
)
def test_the_base_model_has_its_usual_name(family: str, version: str, architecture: str, made) -> None:
    assert host.base_version(made(family).model) == (version, architecture)


def test_other_base_models_have_their_names(made) -> None:
    assert host.base_version(models.flux(guidance=False).model) == ("flux1", "flux-1-schnell")
    assert host.base_version(models.z_image())[1] == "z-image"
    assert host.base_version(models.aura_flow())[1] == "aura-flow"
    v = make_sd2()
    v.model.model.model_type = comfy.model_base.ModelType.V_PREDICTION
    assert host.base_version(v.model) == ("sd_v2", "stable-diffusion-v2-768-v")


@pytest.mark.parametrize("make", [models.flux2, models.z_image, models.lumina2, models.qwen_image, models.aura_flow])
def test_every_other_family_has_one_name_a_weight_and_parts_that_cover_it(make) -> None:
    model = make()
    names = host.layer_names(model)
    by_name = comfy.lora.model_lora_keys_unet(model.model, {})
    assert all(by_name[layer.kohya] == by_name[layer.comfy] == key for key, layer in names.items())
    paths = [path for layer in names.values() for path in {part[0] for part in layer.diffusers}]
    assert len(paths) == len(set(paths))
    assert len(paths) > 10 or make is models.lumina2  # the host knows no names of diffusers' Lumina 2
    for layer in names.values():
        covered = sorted(row for _, start, length in layer.diffusers for row in range(start, start + length))
        assert covered in ([], list(range(layer.shape[0])))


def test_the_clip_alone_and_the_model_alone_have_names() -> None:
    small = sdxl()
    both = host.layer_names(small.model, small.clip)
    assert host.layer_names(small.model) | host.layer_names(None, small.clip) == both


def test_with_lora_leaves_model_and_clip_as_they_were() -> None:
    small = sd15()
    before = models.state(small)
    model, clip = host.with_lora(small.model, small.clip, random_lora(small), 1.0, 0.5)
    assert not small.model.patches and not small.clip.patcher.patches
    assert {patch[0][0] for patch in model.patches.values()} == {1.0}
    assert {patch[0][0] for patch in clip.patcher.patches.values()} == {0.5}
    after = models.state(small)
    assert all(torch.equal(before[key], after[key]) for key in before)


SMALL_DIFFUSERS: dict[str, Callable[[], torch.nn.Module]] = {
    "Flux 2": lambda: diffusers.Flux2Transformer2DModel(num_layers=2, num_single_layers=2),
    "Chroma": lambda: diffusers.ChromaTransformer2DModel(num_layers=2, num_single_layers=2),
    "Z-Image": lambda: diffusers.ZImageTransformer2DModel(n_layers=2, n_refiner_layers=1),
    "Lumina 2": lambda: diffusers.Lumina2Transformer2DModel(num_layers=2, num_refiner_layers=1),
    "Qwen-Image": lambda: diffusers.QwenImageTransformer2DModel(num_layers=2),
    "AuraFlow": lambda: diffusers.AuraFlowTransformer2DModel(num_mmdit_layers=2, num_single_dit_layers=1),
    "PixArt": lambda: diffusers.PixArtTransformer2DModel(num_layers=2, sample_size=128, caption_channels=4096),
}


@pytest.mark.parametrize("family", SMALL_DIFFUSERS)
def test_what_we_call_diffusers_names_are_modules_of_diffusers(family: str) -> None:
    with torch.device("meta"):
        module = SMALL_DIFFUSERS[family]()
    known = {f"transformer.{name}" for name, _ in module.named_modules()}
    names = host.layer_names(models.FAMILIES[family]())
    assert {path for layer in names.values() for path, _, _ in layer.diffusers} <= known
