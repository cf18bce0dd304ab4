"""Going on from a LoRA that is there already."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..adapters import KINDS, Adapter
from ..adapters.attach import Target, can_adapt, is_convolution, targets_of
from ..adapters.layer_rules import DIFFUSION_MODEL, parse_layer_rules, rule_for
from ..adapters.settings import LARGEST_RANK, AdapterConfig
from ..basics.errors import raise_if_any
from ..config import LoRAConfig
from ..host import LayerNames
from .export import lora_tensors
from .files import read_adapters
from .keys import is_no_adapters

MOST_NAMED = 5


@dataclass(frozen=True)
class Continued:
    """What of a LoRA is trained on, and what stays."""

    adapters: dict[str, Adapter]
    """trained on; by state-dict key of the base weight"""
    frozen: dict[str, torch.Tensor]
    """entries that stay as they are"""
    config: LoRAConfig
    """the recipe, with what the LoRA itself decides in place of what was asked for"""
    notes: list[str]


def continued(
    start: Mapping[str, torch.Tensor],
    names: Mapping[str, LayerNames],
    config: LoRAConfig,
    model: Any,
    text_encoder: Any,
) -> Continued:
    """The adapters of a LoRA: its layers, kinds, ranks and alphas stay.

    Args:
        model, text_encoder: the modules that the layers are of.

    Raises:
        InputError: it holds no layer of this model that can be trained.
    """
    found = read_adapters(start, names)
    adapters, trains_text = found.adapters, config.optimization.text_encoder_learning_rate > 0
    rules = parse_layer_rules(config.adapter.layer_rules)
    targets = [target for root in (model, text_encoder) for target in targets_of(root, adapters) if can_adapt(target)]
    trained = {
        target.key: adapters[target.key]
        for target in targets
        if (trains_text or target.key.startswith(DIFFUSION_MODEL)) and rule_for(rules, target.name).rank != 0
    }
    idle = [key for key, adapter in trained.items() if adapter.scale == 0]
    trained = {key: adapter for key, adapter in trained.items() if adapter.scale != 0}
    still = {key: adapters[key] for key in adapters if key not in trained}
    if not trained:
        problem = "start holds no layer of this model that can be trained: connect another LoRA."
        if idle:
            problem = (
                f"start has alpha 0 in all {len(idle)} layers that could be trained, such as {idle[0]}: what "
                "an adapter adds is scaled by alpha / rank, so they do nothing and cannot learn. Connect another "
                "LoRA, or none."
            )
        raise_if_any("Train LoRA", [problem])
    config, notes = as_found(config, targets, trained)
    if idle:
        notes.append(f"start has alpha 0 in {len(idle)} layers, such as {idle[0]}: they do nothing, and stay so.")
    if trains_text and not config.optimization.text_encoder_learning_rate:
        notes.append("start has no text encoder layers: the text encoders are not trained.")
    frozen = {**found.kept, **lora_tensors(still, names)}
    if frozen:
        notes.append(f"{len(frozen)} entries of the LoRA that was continued stay as they are.")
    others = [key for key in found.unknown if is_no_adapters(key)]
    for what, keys in (
        ("Not this model's, left out", [key for key in found.unknown if key not in others]),
        ("No adapter's, left out", others),
    ):
        if keys:
            more = f" and {len(keys) - MOST_NAMED} more" if len(keys) > MOST_NAMED else ""
            notes.append(f"{what}: {', '.join(keys[:MOST_NAMED])}{more}")
    notes.append(
        "Continued from a LoRA: adapter, rank, alpha and targets are those of its layers. Of layer_rules, rank=0 "
        "leaves a layer as it is, and lr holds."
    )
    return Continued(trained, frozen, config, notes)


def as_found(
    config: LoRAConfig, targets: Iterable[Target], adapters: Mapping[str, Adapter]
) -> tuple[LoRAConfig, list[str]]:
    """The recipe with the kind, rank and alpha that most of a continued LoRA's layers have, convolutions apart.

    A number that no recipe can hold becomes the nearest one that can; a sentence says so.
    """
    found: dict[bool, list[Adapter]] = {True: [], False: []}
    for target in targets:
        if target.key in adapters:
            found[is_convolution(target)].append(adapters[target.key])
    kind, rank, alpha = _usual(found[False] or found[True])
    _, conv_rank, conv_alpha = _usual(found[True] or found[False])
    values: dict[str, float] = {
        "rank": rank,
        "alpha": alpha,
        "conv_rank": conv_rank if conv_rank != rank else 0,
        "conv_alpha": conv_alpha if conv_alpha != alpha else 0.0,
    }
    notes = []
    for name, value in values.items():
        limits = AdapterConfig.limits()[name]
        highest = LARGEST_RANK if name == "rank" and KINDS[kind].has_rank_limit else limits.highest
        values[name] = min(max(value, limits.offered[0]), highest)
        if values[name] != value:
            notes.append(f"start has {name} {value:g}, which no recipe can hold: the metadata says {values[name]:g}.")
    has_text = any(not key.startswith(DIFFUSION_MODEL) for key in adapters)
    changed = config.changed(
        **values,
        adapter=kind,
        rslora=False,
        text_encoder_learning_rate=config.optimization.text_encoder_learning_rate if has_text else 0.0,
    )
    return changed, notes


def _usual(adapters: Sequence[Adapter]) -> tuple[str, int, float]:
    """The most frequent kind, rank and alpha."""
    return Counter((adapter.kind, adapter.rank, adapter.alpha) for adapter in adapters).most_common(1)[0][0]
