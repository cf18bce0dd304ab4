"""Small models with random weights, made of the host's own classes: no file, no stub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import torch
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


@dataclass
class Small:
    """MODEL, CLIP and VAE as a checkpoint loader would give them."""

    model: Any
    clip: Any
    vae: Any


def sd15(seed: int = 0) -> Small:
    """SD1.5's architecture, narrow: eps prediction, one text encoder."""
    config = comfy.supported_models.SD15({**UNET, "context_dim": WIDTH, "use_linear_in_transformer": False})
    config.unet_config.update(num_heads=4, num_head_channels=-1)
    return _small(config, {"clip_l_model_config": SMALL_CLIP}, seed)


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


def v_prediction(small: Small) -> Small:
    """The same weights, taken as a v-prediction model, as the core's ModelSamplingDiscrete node does."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return Small(ModelSamplingDiscrete().patch(small.model, "v_prediction", False)[0], small.clip, small.vae)


def state(small: Small) -> dict[str, torch.Tensor]:
    """A copy of every weight of MODEL, CLIP and VAE."""
    modules = {"model": small.model.model, "clip": small.clip.cond_stage_model, "vae": small.vae.first_stage_model}
    return {
        f"{part}.{name}": tensor.clone()
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
        if isinstance(part, nn.GroupNorm | nn.LayerNorm) and part.weight is not None:
            part.weight.data += 1.0


def _small(config: Any, clip_options: dict[str, Any], seed: int) -> Small:
    with torch.inference_mode():  # as nodes run: the weights are inference tensors
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device="cpu")
        randomise(model.diffusion_model, seed)
        clip = comfy.sd.CLIP(config.clip_target({}), model_options={**clip_options, "dtype": torch.float32})
        randomise(clip.cond_stage_model, seed + 1)
        taesd = TAESD(latent_channels=4)
        randomise(taesd, seed + 2)
        vae = comfy.sd.VAE(sd={name: tensor.clone() for name, tensor in taesd.state_dict().items()})
        device = comfy.model_management.get_torch_device()
        patcher = comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))
    return Small(patcher, clip, vae)
