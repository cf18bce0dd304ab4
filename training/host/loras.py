"""Names of a model's layers in LoRA files, from the host's key maps; and a LoRA applied by the host's loader."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.sd
import comfy.utils
import torch

from .families import ModelFamily, facts_about
from .packed import shape_of

UNET_PREFIX = "lora_unet_"
TEXT_PREFIX = "text_encoder"
LABEL_EMBEDDINGS = {"class_embedding", "add_embedding"}
"""diffusers' names of a UNet's label_emb; a model has one of them."""


@dataclass(frozen=True)
class LayerNames:
    """The names of one weight in each format of LoRA file, without endings such as `.lora_down.weight`."""

    kohya: str
    """E.g. lora_unet_input_blocks_4_1_proj_in; the host's name if kohya has none."""
    comfy: str
    """E.g. diffusion_model.input_blocks.4.1.proj_in."""
    diffusers: tuple[tuple[str, int, int], ...] = ()
    """(module path, first row, number of rows) of each part of the weight. Several paths: diffusers splits a fused
    layer. One path several times: diffusers holds the rows in another order. Empty: diffusers has no such layer."""
    shape: tuple[int, ...] = ()
    """Shape of the weight, before quantisation."""


def layer_names(model: Any, clip: Any = None) -> dict[str, LayerNames]:
    """The names of every weight of the MODEL and of the CLIP's text encoders, by state-dict key.

    Args:
        model, clip: None = left out.
    """
    names = {} if model is None else _model_names(model.model)
    if clip is not None:
        names |= _text_names(clip.cond_stage_model)
    return names


def with_lora(
    model: Any, clip: Any, lora: Mapping[str, torch.Tensor], strength: float, clip_strength: float | None = None
) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with a LoRA applied by the host's loader.

    Args:
        clip_strength: strength on the text encoders; None = `strength`.
    """
    text_strength = strength if clip_strength is None else clip_strength
    return comfy.sd.load_lora_for_models(model, clip, dict(lora), strength, text_strength)


def _model_names(base: Any) -> dict[str, LayerNames]:
    weights = {key: shape for key, shape in _shapes(base).items() if key.startswith("diffusion_model.")}
    family = facts_about(base)
    modules = _unet_modules(base, family)
    parts = {key: ((f"unet.{module}", 0, weights[key][0]),) for key, module in modules.items() if key in weights}
    if not modules:
        parts = _transformer_parts(base, weights, family.prefers_later_names)
    names = {}
    for key, shape in weights.items():
        path = key.removeprefix("diffusion_model.").removesuffix(".weight")
        kohya = modules.get(key, path) if family.kohya_paths == "diffusers" else path
        names[key] = LayerNames(
            UNET_PREFIX + kohya.replace(".", "_"), f"diffusion_model.{path}", parts.get(key, ()), shape
        )
    return names


def _shapes(root: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """State-dict key of each weight -> its shape before quantisation.

    The state dict itself may hold other tensors: packs put entries into it by which the host estimates memory.
    """
    modules = dict(root.named_modules())
    shapes = {}
    for key, weight in root.named_parameters(remove_duplicate=False):
        if key.endswith(".weight") and weight.dim():
            linear = modules.get(key.removesuffix(".weight"))
            sides = getattr(linear, "out_features", None), getattr(linear, "in_features", None)
            shapes[key] = shape_of(weight) if None in sides else sides
    return shapes


def _unet_modules(base: Any, family: ModelFamily) -> dict[str, str]:
    """State-dict key -> diffusers' module path, for UNets."""
    (other_name,) = LABEL_EMBEDDINGS - {family.label_embedding}
    return {
        f"diffusion_model.{key}": module.removesuffix(".weight")
        for module, key in comfy.utils.unet_to_diffusers(base.model_config.unet_config).items()
        if module.endswith(".weight") and not module.startswith(f"{other_name}.")
    }


Part = tuple[str, int, int]


def _transformer_parts(
    base: Any, weights: Mapping[str, tuple[int, ...]], prefers_later_names: bool
) -> dict[str, tuple[Part, ...]]:
    """State-dict key -> parts in diffusers' model, for transformers, from the host's map of all names it can load."""
    whole: dict[str, list[tuple[Part, ...]]] = {}
    split: dict[str, list[Part]] = {}
    for path, entry in comfy.lora.model_lora_keys_unet(base, {}).items():
        key, slice_, *changes = (entry, None) if isinstance(entry, str) else entry
        if not path.startswith("transformer.") or key not in weights:
            continue
        rows = weights[key][0]
        if slice_ is not None:
            split.setdefault(key, []).append((path, slice_[1], slice_[2]))
        elif changes:  # the host has one kind of change: diffusers holds the second half of the rows first
            whole.setdefault(key, []).append(((path, rows // 2, rows - rows // 2), (path, 0, rows // 2)))
        else:
            whole.setdefault(key, []).append(((path, 0, rows),))
    chosen = {key: entries[-1 if prefers_later_names else 0] for key, entries in whole.items()}
    for key, entries in split.items():
        entries.sort(key=lambda part: part[1])
        ends = [0, *(start + length for _, start, length in entries)]
        if ends[-1] == weights[key][0] and all(start == end for (_, start, _), end in zip(entries, ends, strict=False)):
            chosen[key] = tuple(entries)
    return chosen


def _text_names(encoders: Any) -> dict[str, LayerNames]:
    weights = _shapes(encoders)
    is_only_one = len({key.split(".")[0] for key in weights if ".transformer." in key}) == 1
    spellings: dict[str, list[str]] = {}
    for name, key in comfy.lora.model_lora_keys_clip(encoders, {}).items():
        spellings.setdefault(key, []).append(name)
    names = {}
    for key, shape in weights.items():
        numbered = sorted(name for name in spellings[key] if re.match(r"lora_te\d_", name))
        plain = [name for name in spellings[key] if name.startswith("lora_te_")]
        kohya = (plain + numbered[::-1]) if is_only_one else (numbered[::-1] + plain)
        paths = [name for name in spellings[key] if re.match(rf"{TEXT_PREFIX}(_\d)?\.", name)]
        comfy_name = f"text_encoders.{key.removesuffix('.weight')}"
        names[key] = LayerNames(
            kohya=kohya[0] if kohya else comfy_name,
            comfy=comfy_name,
            diffusers=tuple((path, 0, shape[0]) for path in paths[:1]),
            shape=shape,
        )
    return names
