"""LoRAs with random numbers, for a model's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from comfy_extras.nodes_train import _create_bias_adapter, _create_weight_adapter
from lora_kiln.training import host
from lora_kiln.training.adapters import LoRA
from lora_kiln.training.lora.export import lora_tensors
from lora_kiln.training.lora.lora import LoRAModel

TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def is_adapted(key: str, shape: tuple[int, ...]) -> bool:
    """Every linear layer and convolution of the model; of text encoders the layers of attention and MLP."""
    if not key.startswith("diffusion_model."):
        return key.removesuffix(".weight").endswith(TEXT_LAYERS)
    return len(shape) in (2, 4) and "embed" not in key.split(".")[-2]


def random_adapters(
    names: Mapping[str, Any], rank: int = 4, alpha: float = 3.0, seed: int = 0, wanted: Callable = is_adapted
) -> dict[str, LoRA]:
    """An adapter a layer, by state-dict key; the layers' outputs change by about a tenth."""
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for key, layer in names.items():
        if wanted(key, layer.shape):
            out, *rest = layer.shape
            down = torch.randn(rank, *rest, generator=generator) / math.prod(rest) ** 0.5
            up = torch.randn(out, rank, *(1 for _ in rest[1:]), generator=generator) * 0.1
            adapters[key] = LoRA(down, up, alpha)
    return adapters


def random_lora(small: Any, precision: str = "fp32", **options: Any) -> LoRAModel:
    """A LoRA as Train LoRA would give it for MODEL and CLIP."""
    names = host.layer_names(small.model, small.clip)
    tensors = lora_tensors(random_adapters(names, **options), names, precision)
    return LoRAModel(tensors, {}, "random", {layer.kohya: layer for layer in names.values()})


def core_trainers_file(model, algorithm: str) -> dict[str, torch.Tensor]:
    """What the core's Train LoRA node hands to its Save LoRA node, with numbers as after some steps."""
    lora: dict[str, torch.Tensor] = {}
    for name, module in model.model.named_modules():
        if hasattr(module, "weight_function") and module.weight is not None:
            lora.update(_create_weight_adapter(module, name, {}, algorithm, torch.float32, 4)[1])
            if module.bias is not None:
                lora.update(_create_bias_adapter(module, name, torch.float32)[1])
    generator = torch.Generator().manual_seed(0)
    return {
        key: (t if key.endswith("alpha") else torch.randn(t.shape, generator=generator) * 0.1).detach()
        for key, t in lora.items()
    }
