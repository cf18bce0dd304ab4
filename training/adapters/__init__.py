"""The adapters: parametrisations of a change to a frozen layer, one file each, and the table of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .base import Adapter
from .dora import DoRA
from .loha import LoHa
from .lokr import LoKr
from .lora import LoRA, init_lora
from .oft import OFT

__all__ = [
    "EXACT",
    "KINDS",
    "Adapter",
    "DoRA",
    "LoHa",
    "LoKr",
    "LoRA",
    "OFT",
    "adapter_from_tensors",
    "init_lora",
    "new_adapter",
]

KINDS: dict[str, type[Adapter]] = {each.kind: each for each in (LoRA, DoRA, LoHa, LoKr, OFT)}
"""By name. The config accepts every row that is in it when it is asked."""
EXACT = ("alpha", "dora_scale")
"""Entries of a file that stay float32 in every precision: small, and rounding them changes the whole weight."""


def new_adapter(
    kind: str, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, factor: int = -1
) -> Adapter:
    """A fresh adapter on the layer's device with which the layer's output is unchanged.

    Args:
        kind: a key of KINDS.
        alpha: as in a file: scale = alpha / rank.
        generator: on the CPU; draws all the adapter's numbers.
        factor: the recipe's lokr_factor, for a kind that takes one.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"There is no adapter {kind!r}.")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return KINDS[kind].new(layer, rank, alpha, generator, factor).to(weight.device)


def adapter_from_tensors(tensors: Mapping[str, Tensor]) -> Adapter | None:
    """The adapter that one layer's entries of a LoRA file describe; it can be trained further.

    Args:
        tensors: suffix -> tensor, e.g. lora_up.weight, lora_down.weight, alpha; lora_A.weight and lora_B.weight;
            with dora_scale DoRA; hada_*, lokr_*, oft_blocks.

    Returns:
        None for forms that are not trained here: Tucker (lora_mid, hada_t1, lokr_t2), rescale, BOFT, whole
        differences, or unknown entries.
    """
    names = set(tensors) - {"alpha"}
    found = {name: tensors[name].detach().to(torch.float32, copy=True) for name in names}
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    for kind in KINDS.values():
        adapter = kind.from_tensors(found, alpha)
        if adapter is not None:
            return adapter
    return None
