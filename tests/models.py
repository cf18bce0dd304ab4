"""Small models with random weights, made of the host's own classes: no file, no stub."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.sd3_clip
import torch
from comfy.supported_models_base import ClipTarget
from comfy.taesd.taesd import TAESD
from torch import nn

WIDTH = 32  # channels of the UNet's first level, features of a text encoder
SMALL_CLIP = {
    "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 2, "num_hidden_layers": 3,
    "projection_dim": WIDTH,
}  # fmt: skip
UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": WIDTH, "num_res_blocks": [1, 1],
    "channel_mult": (1, 2), "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1, "use_spatial_transformer": True, "legacy": False, "dtype": torch.float32,
}  # fmt: skip
FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 4.0,
    "depth": 2, "depth_single_blocks": 2, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True,
    "context_in_dim": WIDTH, "vec_in_dim": WIDTH, "txt_ids_dims": [],
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 64, "cap_feat_dim": WIDTH, "n_layers": 2,
    "n_refiner_layers": 1, "n_heads": 2, "qk_norm": True, "axes_dims": [8, 12, 12], "axes_lens": [300, 512, 512],
    "ffn_dim_multiplier": 1.0, "multiple_of": 16,
}  # fmt: skip
SMALL_T5 = {"d_model": WIDTH, "d_ff": 2 * WIDTH, "d_kv": 16, "num_heads": 2, "num_layers": 2}


@dataclass
class Small:
    """MODEL, CLIP and VAE as a checkpoint loader would give them."""

    model: Any
    clip: Any
    vae: Any


def sd15(seed: int = 0, **network: Any) -> Small:
    """SD1.5's architecture, narrow: eps prediction, one text encoder. `network`: values in place of UNET's."""
    config = comfy.supported_models.SD15({**UNET, "context_dim": WIDTH, "use_linear_in_transformer": False, **network})
    config.unet_config.update(num_heads=4, num_head_channels=-1)
    return _small(config, {"clip_l_model_config": SMALL_CLIP}, seed)


def few_blocks(seed: int = 0) -> Small:
    """SD1.5's architecture with attention in two places: for tests that start many runs and look at what is around."""
    blocks = {"transformer_depth": [1, 0], "transformer_depth_output": [0, 0, 1, 0], "transformer_depth_middle": 0}
    return sd15(seed, **blocks)


def sdxl(seed: int = 0) -> Small:
    """SDXL's architecture, narrow: two text encoders, pooled text and sizes as a vector."""
    config = comfy.supported_models.SDXL(
        {
            **UNET, "context_dim": 2 * WIDTH, "use_linear_in_transformer": True, "num_classes": "sequential",
            "adm_in_channels": WIDTH + 6 * 256,
        }
    )  # fmt: skip
    config.unet_config.update(num_heads=-1, num_head_channels=16)
    small = {"clip_l_model_config": SMALL_CLIP, "clip_g_model_config": {**SMALL_CLIP, "hidden_act": "gelu"}}
    return _small(config, small, seed)


def sd2(seed: int = 0) -> Any:
    """A MODEL of SD2's architecture, narrow: eps prediction."""
    config = comfy.supported_models.SD20({**UNET, "context_dim": WIDTH, "use_linear_in_transformer": True})
    config.unet_config.update(num_heads=-1, num_head_channels=16)
    return _model(config, seed)


def sdxl_refiner(seed: int = 0) -> Any:
    """A MODEL of the SDXL refiner's architecture, narrow."""
    config = comfy.supported_models.SDXLRefiner(
        {
            **UNET, "context_dim": WIDTH, "use_linear_in_transformer": True, "num_classes": "sequential",
            "adm_in_channels": WIDTH + 5 * 256,
        }
    )  # fmt: skip
    config.unet_config.update(num_heads=-1, num_head_channels=16)
    return _model(config, seed)


def sd3(seed: int = 0) -> Small:
    """SD3's architecture, narrow: flow, image and text as one sequence, two text encoders and no T5."""
    config = comfy.supported_models.SD3(
        {
            "in_channels": 16, "pos_embed_scaling_factor": None, "patch_size": 2, "depth": 2, "num_patches": 256,
            "pos_embed_max_size": 16, "qk_norm": "rms", "input_size": None, "adm_in_channels": 2 * WIDTH,
            "context_embedder_config": _linear(4096, 128),
        }
    )  # fmt: skip
    clip = comfy.text_encoders.sd3_clip
    target = ClipTarget(clip.SD3Tokenizer, clip.sd3_clip(clip_l=True, clip_g=True, t5=False))
    small = {"clip_l_model_config": SMALL_CLIP, "clip_g_model_config": {**SMALL_CLIP, "hidden_act": "gelu"}}
    return _small(config, small, seed, target)


def flux(seed: int = 0, guidance: bool = True) -> Small:
    """Flux's architecture, narrow: flow, double and single blocks, CLIP-L and T5; without guidance it is schnell."""
    kind = comfy.supported_models.Flux if guidance else comfy.supported_models.FluxSchnell
    config = kind({**FLUX, "image_model": "flux", "guidance_embed": guidance})
    return _small(config, {"clip_l_model_config": SMALL_CLIP, "t5xxl_model_config": SMALL_T5}, seed)


def pixart(seed: int = 0) -> Small:
    """PixArt-Sigma's architecture, narrow: eps prediction by a transformer, T5."""
    config = comfy.supported_models.PixArtSigma(
        {
            "image_model": "pixart_sigma", "hidden_size": 48, "num_heads": 2, "depth": 2, "caption_channels": WIDTH,
            "micro_condition": False, "pe_interpolation": None, "pe_precision": 2, "model_max_length": 300,
        }
    )  # fmt: skip
    return _small(config, {"t5xxl_model_config": SMALL_T5}, seed)


def chroma(seed: int = 0) -> Small:
    """Chroma's architecture, narrow: Flux's blocks, modulated by a small network, T5."""
    approximator = {"in_dim": 64, "hidden_dim": WIDTH, "out_dim": 64, "n_layers": 1}
    config = comfy.supported_models.Chroma(
        {**FLUX, **approximator, "vec_in_dim": None, "image_model": "chroma", "in_channels": 64}
    )
    config.unet_config.update(out_channels=64)
    return _small(config, {"t5xxl_model_config": SMALL_T5}, seed)


def flux2(seed: int = 0) -> Any:
    """A MODEL of Flux 2's architecture, narrow: modulation shared by all blocks. Its text encoders are large."""
    return _model(
        comfy.supported_models.Flux2(
            {
                **FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1,
                "axes_dim": [8, 8, 8, 8], "theta": 2000, "mlp_ratio": 3.0, "vec_in_dim": None, "qkv_bias": False,
                "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "guidance_embed": True,
                "txt_ids_dims": [3], "default_ref_method": "index", "ref_index_scale": 10.0,
            }
        ),
        seed,
    )  # fmt: skip


def lumina2(seed: int = 0) -> Any:
    """A MODEL of Lumina 2's architecture, narrow."""
    return _model(comfy.supported_models.Lumina2({**LUMINA, "n_heads": 2, "n_kv_heads": 1}), seed)


def z_image(seed: int = 0) -> Any:
    """A MODEL of Z-Image's architecture, narrow: Lumina 2's with other modulation and padded sequences."""
    own = {"dim": 256, "axes_dims": [32, 48, 48], "z_image_modulation": True, "time_scale": 1000.0}
    return _model(comfy.supported_models.ZImage({**LUMINA, **own, "pad_tokens_multiple": 32}), seed)


def qwen_image(seed: int = 0) -> Any:
    """A MODEL of Qwen-Image's architecture, narrow; its latents have a time axis."""
    return _model(
        comfy.supported_models.QwenImage(
            {
                "image_model": "qwen_image", "in_channels": 64, "out_channels": 16, "num_layers": 2,
                "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": WIDTH,
                "axes_dims_rope": (8, 12, 12),
            }
        ),
        seed,
    )  # fmt: skip


def aura_flow(seed: int = 0) -> Any:
    """A MODEL of AuraFlow's architecture, narrow."""
    return _model(
        comfy.supported_models.AuraFlow(
            {
                "cond_seq_dim": WIDTH, "dim": 64, "n_layers": 3, "n_double_layers": 2, "n_heads": 2,
                "global_conddim": 64, "max_seq": 64,
            }
        ),
        seed,
    )  # fmt: skip


def long_cat_image(seed: int = 0) -> Any:
    """A MODEL of LongCat-Image's architecture, narrow: Flux's blocks in a family of its own."""
    return _model(
        comfy.supported_models.LongCatImage({**FLUX, "image_model": "flux", "guidance_embed": False}), seed
    )  # fmt: skip


TRANSFORMERS = {
    "sd3": lambda: sd3().model, "flux": lambda: flux().model, "schnell": lambda: flux(guidance=False).model,
    "chroma": lambda: chroma().model, "pixart": lambda: pixart().model, "flux2": flux2, "lumina2": lumina2,
    "z_image": z_image, "qwen_image": qwen_image, "aura_flow": aura_flow,
}  # fmt: skip
"""Every family of transformers that can be trained: name -> MODEL"""


FAMILIES = {
    "SD1.5": lambda: sd15().model, "SD2": sd2, "SDXL": lambda: sdxl().model, "SDXL refiner": sdxl_refiner,
    "SD3": TRANSFORMERS["sd3"], "Flux": TRANSFORMERS["flux"], "Flux 2": flux2, "Chroma": TRANSFORMERS["chroma"],
    "Z-Image": z_image, "Lumina 2": lumina2, "Qwen-Image": qwen_image, "AuraFlow": aura_flow,
    "PixArt": TRANSFORMERS["pixart"],
}  # fmt: skip
"""A MODEL for each row of host/families.py: name of the row -> MODEL"""


def random_latents(model: Any, count: int, seed: int) -> torch.Tensor:
    """(count, C, ...) small latents as the MODEL takes them."""
    latent_format = model.get_model_object("latent_format")
    side = 40 if isinstance(model.model, comfy.model_base.PixArt) else 8  # its positions need more than 32
    frames = (1,) if latent_format.latent_dimensions == 3 else ()
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, latent_format.latent_channels, *frames, side, side, generator=generator)


def random_conditioning(model: Any, seed: int) -> list[Any]:
    """A CONDITIONING of random numbers for a transformer of this file, with what its text encoder would add."""
    generator = torch.Generator().manual_seed(seed)
    base = model.model
    options: dict[str, Any] = {"pooled_output": None}
    is_sd3 = isinstance(base, comfy.model_base.SD3)
    if is_sd3 or type(base) is comfy.model_base.Flux:
        options["pooled_output"] = torch.randn(1, 2 * WIDTH if is_sd3 else WIDTH, generator=generator)
    if isinstance(base, comfy.model_base.Lumina2 | comfy.model_base.QwenImage):
        options["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    return [[torch.randn(1, 7, 4096 if is_sd3 else WIDTH, generator=generator), options]]


def v_prediction(small: Small) -> Small:
    """The same weights, taken as a v-prediction model, as the core's ModelSamplingDiscrete node does."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return Small(ModelSamplingDiscrete().patch(small.model, "v_prediction", False)[0], small.clip, small.vae)


def state(small: Small) -> dict[str, torch.Tensor]:
    """A copy in RAM of every weight of MODEL, CLIP and VAE."""
    modules = {"model": small.model.model, "clip": small.clip.cond_stage_model, "vae": small.vae.first_stage_model}
    return {
        f"{part}.{name}": tensor.to("cpu", copy=True)
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def hooks(module: nn.Module) -> int:
    """How many hooks and per-object forwards a module tree carries."""
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) + len(part._backward_hooks) + ("forward" in vars(part))
        for part in module.modules()
    )


def randomise(module: nn.Module, seed: int) -> None:
    """Fills all weights from a seed, so that every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = 0.5 / max(1, parameter[0].numel() if parameter.dim() > 1 else 4) ** 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    for part in module.modules():
        if isinstance(part, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm) and part.weight is not None:
            part.weight.data += 1.0


def _small(config: Any, clip_options: dict[str, Any], seed: int, target: ClipTarget | None = None) -> Small:
    with torch.inference_mode():  # as nodes run: the weights are inference tensors
        model = _model(config, seed)
        target = target or config.clip_target({})
        clip = comfy.sd.CLIP(_copying(target, type(config)), model_options={**clip_options, "dtype": torch.float32})
        randomise(clip.cond_stage_model, seed + 1)
        channels = config.latent_format.latent_channels
        taesd = _copy(("vae", channels, seed), lambda: _random(TAESD(latent_channels=channels), seed + 2))
        vae = comfy.sd.VAE(sd=taesd.state_dict())
    return Small(model, clip, vae)


def _model(config: Any, seed: int) -> comfy.model_patcher.ModelPatcher:
    with torch.inference_mode():
        config.unet_config.setdefault("dtype", torch.float32)
        config.set_inference_dtype(torch.float32, None)
        key = type(config), repr(config.unet_config), repr(config.sampling_settings), seed
        model = _copy(key, lambda: _drawn(config, seed), lambda built: [(built.model_config, config)])
        device = comfy.model_management.get_torch_device()
        return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


def _drawn(config: Any, seed: int) -> nn.Module:
    model = config.get_model({}, "", device="cpu")
    _random(model.diffusion_model, seed)
    for buffer in model.diffusion_model.buffers():  # a checkpoint would bring them
        buffer.normal_(generator=torch.Generator().manual_seed(seed))
    return model


def _random(module: nn.Module, seed: int) -> nn.Module:
    randomise(module, seed)
    return module


def _copying(target: ClipTarget, kind: type) -> ClipTarget:
    """What a CLIP is made of, built once: it may share the tokenizers, which nothing changes."""

    def tokenizer(**options: Any) -> Any:
        return _copy(("tokenizer", kind), lambda: target.tokenizer(**options), lambda built: [(built, built)])

    made = ClipTarget(tokenizer, lambda **options: _copy(("clip", kind, repr(options)), lambda: target.clip(**options)))
    made.params = target.params
    return made


def _copy(key: Any, build: Callable[[], Any], kept: Callable[[Any], list[tuple[Any, Any]]] = lambda built: []) -> Any:
    """A copy of what `build` makes, which runs once for each key: to build a model takes longer than to train it.

    Args:
        kept: pairs of a part of what was built, and what stands in its place in the copy.
    """
    if key not in _built:
        _built[key] = build()
    return copy.deepcopy(_built[key], {id(part): other for part, other in kept(_built[key])})


_built: dict[Any, Any] = {}


def _linear(inputs: int, outputs: int) -> dict[str, Any]:
    return {"target": "torch.nn.Linear", "params": {"in_features": inputs, "out_features": outputs}}
