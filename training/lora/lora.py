"""A LoRA as the graph passes it on."""

from collections.abc import Mapping

import torch

from ..host import LayerNames

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""The number formats of files."""


class LoRAModel(dict[str, torch.Tensor]):
    """A state dict with its metadata, what other files call its layers, and how it is to be written."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        metadata: Mapping[str, str],
        name: str,
        layers: Mapping[str, LayerNames] | None = None,
        precision: str | None = None,
    ):
        super().__init__(tensors)
        self.metadata = dict(metadata)
        self.name = name
        self.layers = dict(layers or {})
        """kohya name -> names; empty where they are not known"""
        self.precision = precision
        """number format of its file, one of DTYPES; None = as the tensors are"""


def usual_dtype(lora: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The number format that a LoRA is to be written in, else the one of most of its values."""
    precision = getattr(lora, "precision", None)
    if precision is not None:
        return DTYPES[precision]
    sizes: dict[torch.dtype, int] = {}
    for tensor in lora.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
