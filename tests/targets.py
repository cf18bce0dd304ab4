"""Layers of small models, chosen with what the table of families says."""

from __future__ import annotations

from lora_kiln.training.adapters import attach
from lora_kiln.training.host.families import FAMILIES
from torch import nn

FUSED = "|".join(family.fused_layers for family in FAMILIES if family.fused_layers)
BLOCKS = {choice: start for family in FAMILIES for choice, start in family.target_blocks.items()}


def find_targets(base_model: nn.Module, targets: str) -> list[attach.Target]:
    """`attach.find_targets` with the fused layers and the single blocks of all families."""
    return attach.find_targets(base_model, targets, FUSED, BLOCKS)
