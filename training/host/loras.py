"""LoRA names and patches, by the host's own maps."""

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.sd
import comfy.utils
import torch

UNET_PREFIX = "lora_unet_"


def kohya_names(model: Any) -> dict[str, str]:
    """The kohya name of every weight of the MODEL: state-dict key -> name without `.lora_down.weight`.

    SD1.5 and SD2 UNets go by diffusers' module names, everything else (SDXL too) by the original ones.
    """
    base = model.model
    names = {}
    for key in base.state_dict():
        if key.startswith("diffusion_model.") and key.endswith(".weight"):
            path = key.removeprefix("diffusion_model.").removesuffix(".weight")
            names[key] = UNET_PREFIX + path.replace(".", "_")
    if not isinstance(base, comfy.model_base.SDXL | comfy.model_base.SDXLRefiner):
        for diffusers_key, key in comfy.utils.unet_to_diffusers(base.model_config.unet_config).items():
            if diffusers_key.endswith(".weight"):
                path = diffusers_key.removesuffix(".weight")
                names[f"diffusion_model.{key}"] = UNET_PREFIX + path.replace(".", "_")
    return names


def with_lora(model: Any, clip: Any, lora: Mapping[str, torch.Tensor], strength: float) -> tuple[Any, Any]:
    """MODEL and CLIP with a LoRA on, exactly as the host's own loader puts it on."""
    return comfy.sd.load_lora_for_models(model, clip, dict(lora), strength, strength)


def base_version(model: Any) -> tuple[str, str]:
    """What files call the base model: (ss_base_model_version, modelspec.architecture)."""
    table = {
        "SD15": ("sd_v1", "stable-diffusion-v1"),
        "SD20": ("sd_v2", "stable-diffusion-v2-512"),
        "SDXL": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
        "Flux": ("flux1", "flux-1-dev"),
        "SD3": ("sd3", "stable-diffusion-3-medium"),
    }
    name = type(model.model.model_config).__name__
    return table.get(name, (name.lower(), name.lower()))
