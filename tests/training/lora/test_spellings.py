"""Whatever the host's loader takes for a layer, we take for the same rows of the same layer."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import comfy.lora
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.lora.export import as_format, lora_tensors
from lora_kiln.training.lora.files import read_adapters
from lora_kiln.training.lora.keys import spellings_of
from lora_kiln.training.lora.lora import LoRAModel
from lora_kiln.training.lora.merge import Part, merge_loras

import models

BOTH: dict[str, Callable[[], models.Small]] = {
    "SD1.5": models.sd15, "SDXL": models.sdxl, "SD3": models.sd3, "Flux": models.flux, "Chroma": models.chroma,
    "PixArt": models.pixart,
}  # fmt: skip
"""The families whose text encoders have small models too."""
ENDINGS = (
    ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight"), ("lora_A", "lora_B"),
    ("lora.down.weight", "lora.up.weight"), ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
)  # fmt: skip
"""The ends of a LoRA's keys that the host reads."""


def model_and_clip(family: str) -> tuple[Any, Any]:
    if family in BOTH:
        small = BOTH[family]()
        return small.model, small.clip
    return models.FAMILIES[family](), None


def hosts_map(model: Any, clip: Any) -> dict[str, Any]:
    """Each name that the host's loader knows -> the weight's key, or (key, rows, change)."""
    found = comfy.lora.model_lora_keys_unet(model.model, {})
    return found if clip is None else comfy.lora.model_lora_keys_clip(clip.cond_stage_model, found)


def weights_of(model: Any, clip: Any) -> dict[str, torch.Tensor]:
    return model.model.state_dict() | ({} if clip is None else clip.cond_stage_model.state_dict())


def changed(model: Any, clip: Any, lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights that the host's own loader changes, as it changes them."""
    found = {}
    weights = weights_of(model, clip)
    for patcher in host.with_lora(model, clip, lora, 1.0):
        for key, patches in (getattr(patcher, "patcher", patcher).patches if patcher else {}).items():
            found[key] = comfy.lora.calculate_weight(patches, weights[key].clone().float(), key)
    return found


def file_in(names: Mapping[str, Any], weights: Mapping[str, torch.Tensor], draw: random.Random) -> dict[str, Any]:
    """A LoRA on every layer: on the whole of it or on all its parts, each under one of the names that fit."""
    places: dict[str, dict[Any, list[str]]] = {}
    for name, entry in names.items():
        key, rows = (entry, None) if isinstance(entry, str) else entry[:2]
        fits = key in weights and (rows is None or rows[1] + rows[2] <= len(weights[key]))  # the host errs in Lumina 2
        if fits and weights[key].dim() in (2, 4):
            places.setdefault(key, {}).setdefault(rows, []).append(name)
    lora = {}
    generator = torch.Generator().manual_seed(draw.randrange(1000))
    for key, by_rows in places.items():
        parts = [rows for rows in by_rows if rows is not None]
        for rows in parts if parts and draw.random() < 0.8 else [None]:
            name, (down, up) = draw.choice(by_rows[rows]), draw.choice(ENDINGS)
            out, *rest = weights[key].shape
            lora[f"{name}.{down}"] = torch.randn(2, *rest, generator=generator)
            lora[f"{name}.{up}"] = torch.randn(rows[2] if rows else out, 2, *(1 for _ in rest[1:]), generator=generator)
            if draw.random() < 0.5:
                lora[f"{name}.alpha"] = torch.tensor(draw.choice([1.0, 3.0]))
    return lora


@pytest.mark.parametrize("family", models.FAMILIES)
def test_what_the_host_loads_we_take_for_the_same(family: str) -> None:
    model, clip = model_and_clip(family)
    names, weights = host.changeable_names(model, clip), weights_of(model, clip)
    map_, ours = hosts_map(model, clip), spellings_of(names.values())
    keys = {layer.kohya: key for key, layer in names.items()}
    for name, entry in map_.items():
        key, rows, *_ = (entry, None) if isinstance(entry, str) else entry
        if key in weights and weights[key].dim() and (rows is None or rows[1] + rows[2] <= len(weights[key])):
            layer, found = ours[name]
            assert keys[layer.kohya] == key, name
            assert rows is None or (0, *found[0]) == rows, name
    lora = file_in(map_, weights, random.Random(family))
    expected = changed(model, clip, lora)
    assert len(expected) > 20
    found = read_adapters(lora, names)
    assert found.unknown == []
    assert found.adapters.keys() == {key for key in expected if key.endswith(".weight")}
    file = LoRAModel(lora, {}, "a")
    for same in (
        {**lora_tensors(found.adapters, names), **found.kept},
        as_format(file, "kohya", names),
        merge_loras([Part(file, 1.0, "lora_1")], 0, names.values()).lora,
    ):
        result = changed(model, clip, same)
        assert result.keys() == expected.keys()
        for key, weight in result.items():
            torch.testing.assert_close(weight, expected[key], atol=1e-4, rtol=1e-4, msg=key)
