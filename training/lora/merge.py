"""Merging several LoRAs into one, and reducing a LoRA's rank.

A LoRA changes a layer's weight by dW = alpha / rank * up @ down (Hu et al., arXiv:2106.09685). The sum of several is a
LoRA whose rank is the sum of theirs; its best approximation of a lower rank is the truncated singular value
decomposition (Eckart and Young, 1936).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import torch
from torch import Tensor

from ..adapters import adapter_from_tensors
from ..basics.errors import raise_if_any
from ..host import LayerNames
from .header import json_object
from .keys import is_no_adapters, layers_of, split_key
from .lora import DTYPES, LoRAModel, usual_dtype
from .lora_sum import SUBJECT, Entries, LoRASum, adapter_entries, common_dtype, difference_of, shape_of

OF_THE_FILE = ("sshs_", "modelspec.hash", "lora_adapter_metadata", "workflow", "prompt", "kiln_conv_")
"""Starts of metadata keys that describe the original file and are dropped."""
OF_THE_SHAPE = ("algo", "conv_dim", "conv_alpha", "dora_wd", "rs_lora", "factor", "layer_rules")
"""Keys of ss_network_args that do not hold for the merged LoRA."""
LISTED = 3


@dataclass(frozen=True)
class Part:
    """A LoRA to merge, with its weight."""

    lora: Mapping[str, Tensor]
    weight: float
    field: str
    """Name of the node's input, for messages."""

    @property
    def name(self) -> str:
        return getattr(self.lora, "name", "") or self.field


@dataclass(frozen=True)
class Merged:
    """The merged LoRA and its errors."""

    lora: LoRAModel
    errors: dict[str, float]
    """Layer -> Frobenius norm of the part lost to the lower rank, relative to the layer's difference."""
    error: float
    """The same over all layers together."""
    report: str


def merge_loras(
    parts: Sequence[Part],
    rank: int = 0,
    names: Iterable[LayerNames] = (),
    device: torch.device | str = "cpu",
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """The LoRA whose difference is the weighted sum of the parts' differences, layer by layer.

    Args:
        rank: highest rank of a layer; 0 = no limit. With rank 0, a layer that only one part has, at weight 1, is
            copied, whatever its kind.
        names: of the model's layers; needed for LoRAs that have other keys than kohya's and do not know their layers.
        device: to compute on; the result is on the CPU.
        on_layer: called with (layers done, number of layers).

    Raises:
        InputError: a part cannot be added: its keys are unknown, it is DoRA or OFT, whose difference depends on the
            base weight, or the parts' shapes differ.
    """
    if not parts:
        raise_if_any(SUBJECT, ["there is no LoRA: connect lora_1."])
    empty = [part for part in parts if not part.lora]
    raise_if_any(SUBJECT, [f"{part.field} ({part.name}) is empty: connect a LoRA that has layers." for part in empty])
    known = _known_layers(parts, names)
    by_part = [_layers(part, known) for part in parts]
    layers = list(dict.fromkeys(layer for entries in by_part for layer in entries))
    _refuse_unaddable(parts, by_part, layers, rank)
    result = LoRASum(rank, torch.device(device))
    for number, layer in enumerate(layers):
        terms = [
            (part.weight, entries[layer]) for part, entries in zip(parts, by_part, strict=True) if layer in entries
        ]
        result.add(layer, terms, known.get(layer))
        on_layer(number + 1, len(layers))
    name = " + ".join(dict.fromkeys(part.name for part in parts))
    kept = _kept(parts)
    lora = LoRAModel({**result.tensors, **kept}, _metadata(parts, result, name), name, known, _precision(parts))
    return Merged(lora, result.errors, result.error, "\n".join([_report(parts, result), *_about_kept(parts, kept)]))


# ---------------------------------------------------------------- parts by layer, and refusals


def _known_layers(parts: Sequence[Part], names: Iterable[LayerNames]) -> dict[str, LayerNames]:
    known = {layer.kohya: layer for layer in names}
    for part in parts:
        known |= getattr(part.lora, "layers", {})
    return known


def _layers(part: Part, known: Mapping[str, LayerNames]) -> dict[str, dict[str, Tensor]]:
    """A part's entries, by kohya's layer names; by the host's name where it is a part of a layer.

    Without names of layers, or for layers that the model lacks, kohya's own names hold as they are.
    """
    found = layers_of(part.lora, known.values())
    layers: dict[str, dict[str, Tensor]] = {layer: dict(entries) for layer, entries in found.entries.items()}
    strange = []
    for key, tensor in [*found.parts.items(), *((key, part.lora[key]) for key in found.unknown)]:
        layer, entry = split_key(key) or ("", "")
        if key in found.parts or layer.startswith(("lora_unet_", "lora_te")):
            layers.setdefault(layer, {})[entry] = tensor
        elif not is_no_adapters(key):
            strange.append(key)
    if strange and not known:
        problem = (
            f"{part.field} ({part.name}) does not name its layers as kohya does, as in {strange[0]}: "
            "connect the model (and clip) that it is for."
        )
        raise_if_any(SUBJECT, [problem])
    if strange:
        problem = f"{part.field} ({part.name}) holds what cannot be added: {_listed(strange)}."
        raise_if_any(SUBJECT, [problem + " Connect the model (and clip) that it is for, or leave it out."])
    return layers


def _kept(parts: Sequence[Part]) -> dict[str, Tensor]:
    """What the parts hold beside adapters, such as embeddings: as it is, from the first part that has it."""
    kept: dict[str, Tensor] = {}
    for part in parts:
        kept = {key: tensor for key, tensor in part.lora.items() if is_no_adapters(key)} | kept
    return kept


def _about_kept(parts: Sequence[Part], kept: Mapping[str, Tensor]) -> list[str]:
    """Sentences for the report about what is no adapter's, and what of it is left out."""
    if not kept:
        return []
    lost = [
        f"{key} of {part.field} ({part.name})"
        for part in parts
        for key in kept.keys() & part.lora.keys()
        if kept[key].shape != part.lora[key].shape or not torch.equal(kept[key], part.lora[key])
    ]
    lines = [f"No adapter's, kept as it is: {_listed(list(kept))}"]
    return lines + ([f"Left out, since another LoRA has one of that name: {_listed(sorted(lost))}"] if lost else [])


def _refuse_unaddable(
    parts: Sequence[Part], by_part: Sequence[Mapping[str, Entries]], layers: Iterable[str], rank: int
) -> None:
    shared = {layer for layer in layers if sum(layer in entries for entries in by_part) > 1}
    refused: dict[tuple[str, str, str], list[str]] = {}
    for part, entries_of in zip(parts, by_part, strict=True):
        for layer, entries in entries_of.items():
            is_copied = rank == 0 and part.weight == 1.0 and layer not in shared
            if not is_copied and (kind := _unaddable_kind(entries)):
                refused.setdefault((part.field, part.name, kind), []).append(layer)
    problems = [
        f"{field} ({name}) is {kind} in {_listed(found)}, which is no difference that can be added, scaled or reduced "
        "without the base model: leave it out, or put it on the model by itself."
        for (field, name, kind), found in refused.items()
    ]
    problems += [problem for layer in shared for problem in _shape_mismatches(layer, parts, by_part)][:LISTED]
    raise_if_any(SUBJECT, problems)


def _unaddable_kind(entries: Entries) -> str:
    """Name of a layer's kind of adapter if it cannot be added; else empty."""
    if "set_weight" in entries:
        return "a replaced weight"
    tensors = adapter_entries(entries)
    if not tensors:
        return ""
    adapter = adapter_from_tensors(tensors)
    if adapter is None:
        return f"of an unknown kind ({', '.join(sorted(tensors))})"
    return adapter.names.title if adapter.needs_weight else ""


def _shape_mismatches(layer: str, parts: Sequence[Part], by_part: Sequence[Mapping[str, Entries]]) -> list[str]:
    shapes = {}
    for part, entries in zip(parts, by_part, strict=True):
        if layer in entries and not _unaddable_kind(entries[layer]):
            matrix = difference_of(entries[layer], torch.device("cpu"))
            if matrix is not None:
                shapes.setdefault(shape_of(matrix), part)
    if len(shapes) < 2:
        return []
    (one, first), (other, second) = list(shapes.items())[:2]
    return [
        f"{layer} is {one[0]} x {one[1]} in {first.field} ({first.name}) and {other[0]} x {other[1]} in {second.field} "
        f"({second.name}): they are for different models."
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


# ---------------------------------------------------------------- metadata and report


def _metadata(parts: Sequence[Part], result: LoRASum, name: str) -> dict[str, str]:
    """The first part's metadata, updated for the merged LoRA. Different ranks are "Dynamic", as in kohya's files."""
    first = getattr(parts[0].lora, "metadata", {})
    kept = {key: value for key, value in first.items() if not key.startswith(OF_THE_FILE)}
    if kept.get("ss_network_module", "").startswith("lycoris") and len(result.ranks) > result.unchanged_layers:
        kept["ss_network_module"] = "networks.lora"
    if arguments := json_object(kept.pop("ss_network_args", "")):
        kept["ss_network_args"] = json.dumps({k: v for k, v in arguments.items() if k not in OF_THE_SHAPE})
    merged = {
        "ss_network_dim": _one_or_dynamic(result.ranks.values()),
        "ss_network_alpha": _one_or_dynamic(result.alphas.values()),
        "ss_output_name": name,
        "modelspec.title": name,
        "modelspec.merged_from": ", ".join(part.name for part in parts),
        "modelspec.description": "Sum of " + _weighted_names(parts),
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return {**kept, **{key: value for key, value in merged.items() if value}}


def _precision(parts: Sequence[Part]) -> str | None:
    """The number format for the merged LoRA's file, which can hold every part's; None if no part has one set."""
    if not any(getattr(part.lora, "precision", None) for part in parts):
        return None
    dtype = common_dtype(usual_dtype(part.lora) for part in parts)
    return next((name for name, each in DTYPES.items() if each == dtype), None)


def _one_or_dynamic(values: Iterable[float]) -> str:
    distinct = set(values)
    return "Dynamic" if len(distinct) > 1 else "".join(str(value) for value in distinct)


def _weighted_names(parts: Sequence[Part]) -> str:
    return ", ".join(f"{part.weight:g} x {part.name}" for part in parts)


def _report(parts: Sequence[Part], result: LoRASum) -> str:
    ranks = result.ranks.values()
    span = "" if not ranks else f", rank {min(ranks)}" + (f" to {max(ranks)}" if len(set(ranks)) > 1 else "")
    size = sum(tensor.numel() for tensor in result.tensors.values())
    lines = [f"Merged {_weighted_names(parts)}: {len(result.ranks)} layers{span}, {size:,} numbers"]
    if result.unchanged_layers:
        lines.append(f"As they were: {result.unchanged_layers} layers that one LoRA alone has")
    if result.errors:
        worst = sorted(result.errors.items(), key=lambda item: -item[1])[:LISTED]
        lines.append(
            f"Relative error of rank {result.limit}: {result.error:.2%} in all {len(result.errors)} reduced layers"
        )
        lines.append("Largest: " + ", ".join(f"{layer} {error:.2%}" for layer, error in worst))
    elif result.limit:
        lines.append(f"No layer had a rank above {result.limit}: nothing was lost.")
    return "\n".join(lines)
