"""A LoRA as nodes pass it on: a state dict with its metadata."""

from collections.abc import Mapping

import torch

from ..host import LayerNames

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
"""Number formats of LoRA files."""


class LoRAModel(dict[str, torch.Tensor]):
    """A LoRA's state dict, with metadata, its layers' names in other formats, and its file's number format."""

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
        """Kohya's name -> names of a layer; empty if they are not known."""
        self.precision = precision
        """Number format for its file, one of DTYPES; None = that of its tensors."""


def usual_dtype(lora: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The number format set for a LoRA's file, or else the most frequent one among its values."""
    precision = getattr(lora, "precision", None)
    if precision is not None:
        return DTYPES[precision]
    sizes: dict[torch.dtype, int] = {}
    for tensor in lora.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
