"""Weights in formats of other packs, such as GGUF: bytes in tensors of the pack's class, which its layers unpack.

ComfyUI-GGUF keeps the patches of such a weight (LoRAs) on the tensor, as `patches`; its layers add them whenever they
unpack the weight.
"""

import copy
import weakref
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..basics.errors import InputError
from .tensors import plain

SUBJECT = "MODEL"


def format_name(weight: Tensor) -> str:
    """The name of a packed weight's format, e.g. GGUF Q8_0; its class where that is all that is known."""
    kind = getattr(weight, "tensor_type", None)
    return f"GGUF {kind.name}" if type(kind).__name__ == "GGMLQuantizationType" else type(weight).__name__  # pyright: ignore


def own_copy(weight: Any, layer: nn.Module, key: str, patches: list[Any], device: torch.device) -> nn.Parameter:
    """A copy of a packed weight (or bias) that has these patches and no others.

    Others may be on the original: it is shared by all MODELs that come from one loader.

    Args:
        layer: unpacks the weight.
        key: the weight's state-dict key.
        patches: as a ModelPatcher holds them for the key.

    Raises:
        InputError: there are patches, and the pack's tensors take none.
    """
    takes_patches = hasattr(weight, "patches")
    if patches and not takes_patches:
        problem = (
            f"the weights are stored as {format_name(weight)}, to which no LoRA can be added here, and one is on it "
            f"({key}): take out the LoRA loader above, or load the model in another format."
        )
        raise InputError(SUBJECT, [problem])
    memory = plain(weight).to(device, copy=True)
    with torch._C.DisableTorchFunctionSubclass():
        copied: Any = memory.as_subclass(type(weight))
    # nn.Parameter would detach the tensor, and a class that does not expect it would lose what is noted here.
    copied.__dict__.update(vars(weight), _is_param=True, dequantize=_Dequantised(layer, key.endswith("bias"), device))
    if takes_patches:
        copied.patches = [(on_device(patches, device), key)] if patches else []
    return copied


def on_device(patches: Any, device: torch.device) -> Any:
    """Copies of a weight's patches, normal tensors on the device: they are read in every forward pass."""

    def moved(part: Any) -> Any:
        if isinstance(part, Tensor):
            return plain(part).detach().to(device, copy=True)
        if isinstance(part, WeightAdapterBase):
            twin = copy.copy(part)
            twin.weights = on_device(part.weights, device)
            return twin
        return part

    return tree_map_only((Tensor, WeightAdapterBase), moved, patches)


def refusal_of(base_model: nn.Module) -> str:
    """Why the weights of a `BaseModel` cannot be trained on; empty where they can.

    bitsandbytes' 4-bit layers do not say how large they are, and have no backward pass through ComfyUI's loaders.
    """
    for module in base_model.modules():
        kind = getattr(getattr(module, "weight", None), "quant_type", None) or getattr(module, "quant_type", None)
        if isinstance(kind, str):
            return (
                f"model is in {kind.upper()} (bitsandbytes, 4 bit), which cannot be trained on: load it as bf16, fp16, "
                "fp8 or GGUF."
            )
    return ""


def shape_of(weight: Tensor) -> tuple[int, ...]:
    """The shape of a weight, before it was packed."""
    state = getattr(weight, "quant_state", None)  # bitsandbytes'
    return tuple(weight.shape if state is None else state.shape)


class _Dequantised:
    """The `dequantize` of a packed weight, by its layer. The reference is weak: a cycle would keep the twin alive."""

    def __init__(self, layer: nn.Module, is_bias: bool, device: torch.device):
        self.layer, self.is_bias, self.device = weakref.ref(layer), is_bias, device

    def __call__(self) -> Tensor:
        """The weight with its patches on: float32, not packed.

        Raises:
            InputError: only the layer's forward can read it.
        """
        layer: Any = self.layer()
        if not hasattr(layer, "cast_bias_weight"):
            problem = (
                f"the weights are stored as {format_name(layer.weight)}, which this adapter would have to read: choose "
                "another adapter than DoRA, or load the model in another format."
            )
            raise InputError(SUBJECT, [problem])
        both = layer.cast_bias_weight(dtype=torch.float32, device=self.device, bias_dtype=torch.float32)
        return plain(both[self.is_bias])
