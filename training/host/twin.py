"""The twin: a copy of a model's module tree that can be trained on, while the model itself is only read.

ComfyUI's weights are inference tensors, may be offloaded, quantised or fetched op by op (dynamic VRAM), and are shared
with all other nodes. The twin has the same module classes and settings, new module objects, and normal tensors computed
from the model's weights and patches. Hooks and adapters go on the twin, so nothing needs to be restored afterwards.
"""

import copy
import types
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import comfy.utils
import torch
from torch import nn

from .blocks import guard_residuals, repeated_blocks
from .device import training_device
from .families import facts_about
from .model_patches import guard_object_patches, without_injections
from .packed import own_copy
from .products import compute_quantised
from .quantise import AS_LOADED, FP8_MATMUL, in_fp8, is_host_linear, to_fp8
from .streaming import streamable
from .tensors import FLOATS, base_weight, is_packed, plain

LOADER_STATE = (
    *("_v", "_v_signature", "_v_weight", "_v_bias", "_prefetch", "_pins", "_pin_state", "seed_key"),
    *("weight_lowvram_function", "bias_lowvram_function", "prev_comfy_cast_weights", "comfy_patched_weights"),
)
"""Module attributes set by the host's loaders. They describe the original's weights and are not copied."""


def trainable_twin(model: Any, dtype: torch.dtype, base_precision: str = AS_LOADED, in_ram: bool = False) -> nn.Module:
    """A twin of MODEL's `BaseModel` that computes in `dtype`; see `twin_of`."""
    twin: Any = twin_of(model, dtype, base_precision, in_ram)
    twin.manual_cast_dtype = dtype
    twin.device = training_device(model)
    twin.current_patcher = None
    guard_residuals(twin, facts_about(twin).in_place_blocks)
    guard_object_patches(twin, model)
    return twin


def twin_of(
    patcher: Any, dtype: torch.dtype | None, base_precision: str = AS_LOADED, in_ram: bool = False
) -> nn.Module:
    """A twin of a patcher's model with its own frozen tensors.

    Args:
        patcher: any ModelPatcher (a MODEL, or a CLIP's `patcher`), with its LoRAs and object patches.
        dtype: weights of the model's main float type are converted to it, quantised ones are not; None = none are.
        base_precision: one of config.BASE_PRECISIONS; with an fp8 choice the repeated blocks' linear weights are
            stored in 8 bits.
        in_ram: leaves the repeated blocks' weights in RAM for `stream_blocks`. Weights without patches and of the right
            number format are then not copied: they are the MODEL's own memory, which is only read.

    Returns:
        The twin on the device where the patcher computes, in evaluation mode.
    """
    device = training_device(patcher)
    with torch.inference_mode(False), torch.no_grad():
        modules: dict[int, nn.Module] = {}
        with without_injections(patcher):
            twin = _copy_tree(patcher.model, modules)
        # Clones share one model, so another clone's object patches may be on it: undo those, then apply the patcher's.
        for name, patch in {**patcher.object_patches_backup, **patcher.object_patches}.items():
            _own_path(twin, name)
            comfy.utils.set_attr(twin, name, _copy_tree(patch, modules) if isinstance(patch, nn.Module) else patch)
        for module in twin.modules():
            for name, value in module.__dict__.items():
                module.__dict__[name] = _rebound(value, modules)
        is_text_encoder = not hasattr(twin, "diffusion_model")
        blocks = [] if is_text_encoder else [block for _, block in repeated_blocks(twin)]
        weights = _Weights(
            patcher=patcher,
            device=device,
            dtype=dtype,
            main_dtype=patcher.model_dtype(),
            in_ram={(id(module), name) for block in blocks if in_ram for module, name in streamable(block)},
            in_fp8={id(module) for block in blocks if in_fp8(base_precision) for module in block.modules()},
            is_multiplied=base_precision == FP8_MATMUL,
        )
        for prefix, module in list(twin.named_modules()):
            _fill(module, f"{prefix}." if prefix else "", weights)
    compute_quantised(twin)
    return twin.requires_grad_(False).eval()


def _copy_tree(module: nn.Module, memo: dict[int, nn.Module]) -> nn.Module:
    """Copies the module objects of a tree; tensors are still shared."""
    if id(module) in memo:
        return memo[id(module)]
    twin = module.__class__.__new__(module.__class__)
    memo[id(module)] = twin
    twin.__dict__ = {
        name: copy.copy(value) if isinstance(value, dict | list | set) else value
        for name, value in module.__dict__.items()
        if name not in LOADER_STATE
    }
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else _copy_tree(child, memo)
    return twin


def _own_path(twin: Any, path: str) -> None:
    """Copies the plain objects on the way to an attribute (a model's `params`): the twin has shared them so far."""
    for name in path.split(".")[:-1]:
        member = getattr(twin, name)
        if not isinstance(member, nn.Module):
            member = copy.copy(member)
            setattr(twin, name, member)
        twin = member


def _rebound(value: Any, modules: dict[int, nn.Module]) -> Any:
    """Methods bound to an original module (object patches set such) are bound to its twin; other values stay."""
    owner = modules.get(id(value.__self__)) if isinstance(value, types.MethodType) else None
    return value if owner is None else types.MethodType(value.__func__, owner)


@dataclass(frozen=True)
class _Weights:
    """How the twin's tensors are made from the patcher's."""

    patcher: Any
    device: torch.device
    dtype: torch.dtype | None
    main_dtype: torch.dtype | None
    in_ram: set[tuple[int, str]]
    """(id of the module, name of the parameter) of the weights that stay in RAM"""
    in_fp8: set[int]
    """ids of the modules whose linear weights are converted to 8 bits"""
    is_multiplied: bool
    """whether those are also multiplied in 8 bits"""
    made: dict[int, nn.Parameter] = field(default_factory=dict)
    """id of the original -> parameter of the twin, so that tied weights stay tied"""

    def make(self, module: nn.Module, key: str, name: str) -> nn.Parameter:
        """The twin's parameter: the base weight, patched, then converted to its number format and device."""
        parameter = module._parameters[name]
        assert parameter is not None
        weight = base_weight(self.patcher, key, parameter)
        if is_packed(weight):
            return own_copy(weight, module, key, self.patcher.patches.get(key, []), self.device)
        weight = plain(weight)
        if weight.is_meta:
            weight = torch.zeros(weight.shape, dtype=weight.dtype)
        stays_in_ram = (id(module), name) in self.in_ram
        is_patched = key in self.patcher.patches
        becomes_fp8 = id(module) in self.in_fp8 and name == "weight" and is_host_linear(module)
        dtype = self._dtype(weight, module, name, is_patched)
        if stays_in_ram and weight.device.type == "cpu" and not is_patched and dtype == weight.dtype:
            if not (becomes_fp8 and _is_plain(weight)):
                return nn.Parameter(weight.detach(), requires_grad=False)
        result = weight.to(self.device, copy=True)
        if is_patched:
            result = _patched(result, key, name, module, self.patcher)
            dtype = self._dtype(result, module, name, is_patched)
        if becomes_fp8 and _is_plain(result):
            result = to_fp8(result, dtype, self.is_multiplied)
        elif result.dtype != dtype:
            result = result.to(dtype)
        return nn.Parameter((result.to("cpu") if stays_in_ram else result).detach(), requires_grad=False)

    def _dtype(self, weight: torch.Tensor, module: nn.Module, name: str, is_patched: bool) -> torch.dtype:
        """The number format of the twin's weight."""
        if not _is_plain(weight):
            return weight.dtype
        # Under dynamic VRAM the host notes on the module in which format a weight is to be used.
        stored = getattr(module, f"{name}_comfy_model_dtype", None) or weight.dtype
        if self.dtype is None:
            return stored
        return self.dtype if stored == self.main_dtype or self.dtype == torch.float32 or is_patched else weight.dtype


def _is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is a plain tensor of a float type in which the host computes: not quantised, not fp8."""
    return type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype in FLOATS


def _fill(module: Any, prefix: str, weights: _Weights) -> None:
    """Replaces a module's tensors, still the original's, by the twin's."""
    patcher = weights.patcher
    if hasattr(module, "comfy_cast_weights"):
        module.comfy_cast_weights = True
        for kind in ("weight", "bias"):
            wrappers = patcher.weight_wrapper_patches.get(f"{prefix}{kind}", [])
            setattr(module, f"{kind}_function", list(wrappers))
    for name, parameter in module._parameters.items():
        if parameter is not None:
            if id(parameter) not in weights.made:
                weights.made[id(parameter)] = weights.make(module, prefix + name, name)
            module._parameters[name] = weights.made[id(parameter)]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            original = patcher.backup_buffers.get(prefix + name, buffer)
            module._buffers[name] = plain(original).to(weights.device, copy=True)


def _patched(weight: torch.Tensor, key: str, name: str, module: nn.Module, model: Any) -> torch.Tensor:
    """The weight with the MODEL's patches on, computed by the host in float32."""
    convert = getattr(module, f"convert_{name}", None)
    weight = weight.to(torch.float32) if convert is None else convert(weight, inplace=False)
    weight = comfy.lora.calculate_weight(model.patches[key], weight, key)
    put_back = getattr(module, f"set_{name}", None)
    if put_back is None:
        return weight
    put_back(weight, inplace_update=False, seed=comfy.utils.string_to_seed(key))
    result = module._parameters[name]
    assert result is not None
    return result
