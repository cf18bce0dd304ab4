"""Names of a model's layers in LoRA files, from the host's key maps; and a LoRA applied by the host's loader."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch

from ..basics.errors import InputError
from .families import ModelFamily, facts_about
from .packed import format_name, shape_of
from .tensors import base_weight, is_packed, plain

UNET_PREFIX = "lora_unet_"
TEXT_PREFIX = "text_encoder"
LABEL_EMBEDDINGS = {"class_embedding", "add_embedding"}
"""diffusers' names of a UNet's label_emb; a model has one of them."""

Rows = tuple[tuple[int, int], ...]
"""(first row, number of rows) of ranges of a weight, in a file's order."""


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
    spellings: tuple[tuple[str, Rows], ...] = ()
    """Every name by which the host's loader finds the weight, or rows of it, and those rows."""
    is_weight: bool = True
    """False for another parameter, such as a bias; `shape` is its first side alone, and no adapter can be trained."""


def layer_names(model: Any, clip: Any = None) -> dict[str, LayerNames]:
    """The names of every weight of the MODEL and of the CLIP's text encoders, by state-dict key.

    Args:
        model, clip: None = left out.
    """
    names = {} if model is None else _model_names(model.model)
    if clip is not None:
        names |= _text_names(clip.cond_stage_model)
    return names


def changeable_names(model: Any, clip: Any = None) -> dict[str, LayerNames]:
    """`layer_names`, and those of the MODEL's other parameters that the host's loader can change, such as biases."""
    names = layer_names(model, clip)
    for key, tensor in ({} if model is None else model.model.state_dict()).items():
        if key.startswith("diffusion_model.") and not key.endswith(".weight") and tensor.dim():
            rows = ((0, tensor.shape[0]),)
            names[key] = LayerNames(key, key, (), tuple(tensor.shape[:1]), ((key, rows),), is_weight=False)
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


def dense_base_weight(model: Any, clip: Any, key: str) -> torch.Tensor:
    """One weight of the MODEL's diffusion model or the CLIP's text encoders, without patches: float32, on the CPU.

    Raises:
        InputError: another pack stores it in a format of its own.
    """
    patcher = model if key.startswith("diffusion_model.") else clip.patcher
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    weight = base_weight(patcher, key, weight)
    if convert is None and (is_packed(weight) or type(plain(weight)) not in (torch.Tensor, torch.nn.Parameter)):
        problem = (
            f"the weights are stored as {format_name(weight)} ({key}), and a DoRA of diffusers or peft can only be "
            "converted by weights that can be read: load the model in another format, or leave the LoRA out."
        )
        raise InputError("MODEL", [problem])
    with torch.inference_mode(False), torch.no_grad():
        weight = plain(weight).to("cpu", copy=True)
        return (weight if convert is None else convert(weight, inplace=False)).float()


def in_the_hosts_spelling(lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A LoRA under keys that the host's key maps know, where its loader renames a whole file of some trainer."""
    return comfy.lora_convert.convert_lora(dict(lora))


def _model_names(base: Any) -> dict[str, LayerNames]:
    shapes = {key: shape for key, shape in _shapes(base).items() if key.startswith("diffusion_model.")}
    family = facts_about(base)
    spellings = _spellings(comfy.lora.model_lora_keys_unet(base, {}), shapes)
    modules = _unet_modules(base, family)
    parts = {key: ((f"unet.{module}", 0, shapes[key][0]),) for key, module in modules.items() if key in shapes}
    if not modules:
        parts = _transformer_parts(spellings, shapes, family)
    names = {}
    for key, shape in shapes.items():
        path = key.removeprefix("diffusion_model.").removesuffix(".weight")
        kohya = modules.get(key, path) if family.kohya_paths == "diffusers" else path
        names[key] = LayerNames(
            kohya=UNET_PREFIX + kohya.replace(".", "_"),
            comfy=f"diffusion_model.{path}",
            diffusers=parts.get(key, ()),
            shape=shape,
            spellings=tuple(spellings.get(key, ())),
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


def _spellings(key_map: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[tuple[str, Rows]]]:
    """State-dict key -> every name that one of the host's key maps has for it, with the rows that the name means."""
    found: dict[str, list[tuple[str, Rows]]] = {}
    for name, entry in key_map.items():
        key, slice_, *changes = (entry, None) if isinstance(entry, str) else entry
        if key not in shapes:
            continue
        count = shapes[key][0]
        side, start, length = slice_ or (0, 0, count)
        rows: Rows = ((start, length),)
        if slice_ is None and changes:  # the host has one kind of change: diffusers holds the second half first
            rows = ((count // 2, count - count // 2), (0, count // 2))
        if side == 0 and start + length <= count:  # the host's own map names rows that Lumina 2 does not have
            found.setdefault(key, []).append((name, rows))
    return found


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
    spellings: Mapping[str, list[tuple[str, Rows]]], shapes: Mapping[str, tuple[int, ...]], family: ModelFamily
) -> dict[str, tuple[Part, ...]]:
    """State-dict key -> parts in diffusers' model, for transformers, from all names that the host can load."""
    chosen: dict[str, tuple[Part, ...]] = {}
    for key, names in spellings.items():
        count = shapes[key][0]
        named = [
            tuple((name, *each) for each in rows)
            for name, rows in names
            if name.startswith("transformer.") and not re.fullmatch(family.not_in_diffusers, name)
        ]
        whole = [parts for parts in named if sum(length for _, _, length in parts) == count]
        if whole:
            chosen[key] = whole[-1 if family.prefers_later_names else 0]
        split = sorted((part for parts in named if parts not in whole for part in parts), key=lambda part: part[1])
        ends = [0, *(start + length for _, start, length in split)]
        if split and ends[-1] == count and all(start == end for (_, start, _), end in zip(split, ends, strict=False)):
            chosen[key] = tuple(split)
    return chosen


def _text_names(encoders: Any) -> dict[str, LayerNames]:
    weights = _shapes(encoders)
    is_only_one = len({key.split(".")[0] for key in weights if ".transformer." in key}) == 1
    spellings = _spellings(comfy.lora.model_lora_keys_clip(encoders, {}), weights)
    names = {}
    for key, shape in weights.items():
        known = [name for name, _ in spellings.get(key, ())]
        numbered = sorted(name for name in known if re.match(r"lora_te\d_", name))
        plain = [name for name in known if name.startswith("lora_te_")]
        kohya = (plain + numbered[::-1]) if is_only_one else (numbered[::-1] + plain)
        paths = [name for name in known if re.match(rf"{TEXT_PREFIX}(_\d)?\.", name)]
        comfy_name = f"text_encoders.{key.removesuffix('.weight')}"
        names[key] = LayerNames(
            kohya=kohya[0] if kohya else comfy_name,
            comfy=comfy_name,
            diffusers=tuple((path, 0, shape[0]) for path in paths[:1]),
            shape=shape,
            spellings=tuple(spellings.get(key, ())),
        )
    return names
