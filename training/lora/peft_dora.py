"""peft's DoRA turned into the host's.

Of the changed weight V = W + s * up @ down, peft gives the rows the norms m: W' = m * V / |V|. The host, given a number
d for each row, divides by the norm of W: W' = d * V / (|W| + eps). Both are the same for d = m * (|W| + eps) / |V|.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .. import host
from ..adapters.dora import EPS, row_norms
from ..host import LayerNames
from .keys import ALPHA, DOWN, MAGNITUDE, UP, scale_of, shaped, spellings_of, split_key
from .lora import LoRAModel


def with_hosts_dora(
    lora: Mapping[str, torch.Tensor], names: Mapping[str, LayerNames], model: Any, clip: Any
) -> Mapping[str, torch.Tensor]:
    """A LoRA with peft's magnitudes replaced by the host's `dora_scale`; the LoRA itself if it has none.

    Magnitudes of layers that MODEL and CLIP lack, or that do not fit theirs, stay as they are.

    Args:
        names: of the layers of MODEL and CLIP, by state-dict key.
    """
    modules: dict[str, dict[str, str]] = {}
    for key in lora:
        if parts := split_key(key):
            modules.setdefault(parts[0], {})[parts[1]] = key
    found = {module: keys for module, keys in modules.items() if MAGNITUDE in keys}
    if not found:
        return lora
    known, weights = spellings_of(names.values()), {layer.kohya: key for key, layer in names.items()}
    tensors = dict(lora)
    for module, keys in found.items():
        if module in known and set(keys) <= {DOWN, UP, ALPHA, MAGNITUDE}:
            layer, rows = known[module]
            weight = host.dense_base_weight(model, clip, weights[layer.kohya])
            weight = torch.cat([weight[start : start + length] for start, length in rows])
            scale = _hosts_scale({entry: lora[key] for entry, key in keys.items()}, weight)
            if scale is not None:
                pieces = dict(zip(rows, scale.split([length for _, length in rows]), strict=True))
                tensors[f"{module}.dora_scale"] = torch.cat([pieces[each] for each in sorted(rows)])
                del tensors[keys[MAGNITUDE]]
    if isinstance(lora, LoRAModel):
        return LoRAModel(tensors, lora.metadata, lora.name, lora.layers, lora.precision)
    return tensors


def _hosts_scale(entries: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor | None:
    """The host's number for each row, (rows, 1, *1s); None if the entries do not fit the weight."""
    magnitude = entries.pop(MAGNITUDE).float().flatten()
    fitting = shaped(entries, tuple(weight.shape)) if {DOWN, UP} <= set(entries) else None
    if fitting is None or len(magnitude) != len(weight):
        return None
    difference = fitting[UP].float().flatten(1) @ fitting[DOWN].float().flatten(1)
    changed = weight + scale_of(fitting) * difference.reshape(weight.shape)
    return magnitude.reshape(-1, *(1 for _ in weight.shape[1:])) * row_norms(weight) / (row_norms(changed) - EPS)
