"""The parametrisations: what is trained beside a frozen layer, one file each."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .base import Adapter, layer_shape
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

KINDS: dict[str, type[Adapter]] = {kind.kind: kind for kind in (LoRA, DoRA, LoHa, LoKr, OFT)}
"""By the names of config.ADAPTERS."""
EXACT = ("alpha", "dora_scale")
"""Entries of a file that stay float32 whatever its precision: small, and rounding them moves the whole weight."""


def new_adapter(
    kind: str, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator, lokr_factor: int = -1
) -> Adapter:
    """A fresh adapter that changes nothing yet, on the layer's device.

    Args:
        kind: one of config.ADAPTERS. A layer with one output row gets LoRA where DoRA is asked: DoRA would only
            leave that row its signs.
        alpha: as a file says it, so scale = alpha / rank.
        generator: on the CPU; the adapter's numbers follow from it alone.
    """
    shape = layer_shape(layer)
    if kind == "lora" or (kind == "dora" and shape[0] == 1):
        adapter: Adapter = LoRA(*init_lora(shape, rank, generator), alpha)
    elif kind == "dora":
        adapter = DoRA.new(layer, rank, alpha, generator)
    elif kind == "loha":
        adapter = LoHa.new(shape, rank, alpha, generator)
    elif kind == "lokr":
        adapter = LoKr.new(shape, rank, alpha, lokr_factor, generator)
    elif kind == "oft":
        adapter = OFT.new(shape, rank)
    else:
        raise ValueError(f"There is no adapter {kind!r}.")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return adapter.to(weight.device)


def adapter_from_tensors(tensors: Mapping[str, Tensor]) -> Adapter | None:
    """One layer's entries of a LoRA file as an adapter that can be trained on.

    Args:
        tensors: suffix -> tensor, e.g. lora_up.weight, lora_down.weight, alpha; lora_A.weight and lora_B.weight;
            with dora_scale DoRA; hada_*, lokr_*, oft_blocks.

    Returns:
        None for forms that are not trained here: Tucker (lora_mid, hada_t1, lokr_t2), rescale, BOFT, whole
        differences, or entries nobody knows.
    """
    names = set(tensors) - {"alpha"}
    found = {name: tensors[name].detach().to(torch.float32, copy=True) for name in names}
    alpha = float(tensors["alpha"]) if "alpha" in tensors else None
    for kind in KINDS.values():
        adapter = kind.from_tensors(found, alpha)
        if adapter is not None:
            return adapter
    return None
