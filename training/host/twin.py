"""A trainable view of the graph's MODEL that leaves the MODEL alone.

ComfyUI's weights are inference tensors, may be offloaded, quantised or fetched op by op (dynamic VRAM), and are
shared with every other node. So a run trains on a twin: the same module classes and settings, its own module
objects, and resident normal tensors computed from the MODEL's weights and patches. Hooks and adapters go on the
twin; nothing is ever written to the original, so there is nothing to put back.
"""

import contextlib
import copy
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import comfy.model_sampling
import comfy.utils
import torch
from torch import nn

from ..basics.errors import raise_if_any
from .attention import attention
from .blocks import guard_residuals, repeated_blocks, streamable
from .device import training_device
from .families import facts_about
from .products import compute_quantised
from .quantise import AS_LOADED, FP8_MATMUL, in_fp8, is_linear, to_fp8

LOADER_STATE = (
    "_v", "_v_signature", "_v_weight", "_v_bias", "_prefetch", "_pins", "_pin_state", "seed_key",
    "weight_lowvram_function", "bias_lowvram_function", "prev_comfy_cast_weights", "comfy_patched_weights",
)  # fmt: skip
"""What the host's loaders hang on a module; it belongs to the original's weights, not to the twin's."""


def trainable_view(model: Any, dtype: torch.dtype, base_precision: str = AS_LOADED, in_ram: bool = False) -> nn.Module:
    """A twin of MODEL's `BaseModel` that computes in `dtype`; see `twin_of`."""
    twin: Any = twin_of(model, dtype, base_precision, in_ram)
    twin.manual_cast_dtype = dtype
    twin.device = training_device(model)
    twin.current_patcher = None
    guard_residuals(twin, facts_about(twin).in_place_blocks)
    return twin


def set_sigmas(twin: Any, sigmas: torch.Tensor) -> None:
    """Gives the twin's sampling another table of noise levels, such as one of zero terminal SNR.

    Args:
        twin: from `trainable_view`; its MODEL is left alone.
        sigmas: (T,) ascending.

    Raises:
        InputError: the model has no table, as flow models have none.
    """
    if not isinstance(twin.model_sampling, comfy.model_sampling.ModelSamplingDiscrete):
        kind = type(twin.model_sampling).__mro__[1].__name__
        raise_if_any("MODEL", [f"its noise levels ({kind}) are no table that can be replaced; eps and v models' are."])
    with torch.inference_mode(False):
        twin.model_sampling.set_sigmas(sigmas.to(twin.device))


def twin_of(
    patcher: Any, dtype: torch.dtype | None, base_precision: str = AS_LOADED, in_ram: bool = False
) -> nn.Module:
    """A twin of a patcher's model with frozen tensors of its own.

    Args:
        patcher: a ModelPatcher of any kind (MODEL, or a CLIP's `patcher`), with its LoRAs and object patches.
        dtype: weights in the model's main float type are converted, quantised ones stay; None = all stay.
        base_precision: one of config.BASE_PRECISIONS; with those of fp8 the repeated blocks' linear weights are in 8
            bit.
        in_ram: the repeated blocks' weights wait in RAM for `stream_blocks`. Those that need no patch and no other
            number format are no copies then, but the MODEL's own memory, which is only read.

    Returns:
        The twin, on the device where the patcher computes, in evaluation mode.
    """
    device = training_device(patcher)
    with torch.inference_mode(False), torch.no_grad():
        modules: dict[int, nn.Module] = {}
        twin = _copy_tree(patcher.model, modules)
        # What another clone has put on the model they share gives way to the patcher's own.
        for name, patch in {**patcher.object_patches_backup, **patcher.object_patches}.items():
            comfy.utils.set_attr(twin, name, _copy_tree(patch, modules) if isinstance(patch, nn.Module) else patch)
        for module in twin.modules():
            for name, value in module.__dict__.items():
                module.__dict__[name] = _rebound(value, modules)
        is_text_encoder = not hasattr(twin, "diffusion_model")
        blocks = [] if is_text_encoder else [block for _, block in repeated_blocks(twin)]
        weights = _Weights(
            patcher, device, dtype, patcher.model_dtype(),
            {(id(module), name) for block in blocks if in_ram for module, name in streamable(block)},
            {id(module) for block in blocks if in_fp8(base_precision) for module in block.modules()},
            base_precision == FP8_MATMUL,
        )  # fmt: skip
        for prefix, module in list(twin.named_modules()):
            _fill(module, f"{prefix}." if prefix else "", weights)
    compute_quantised(twin)
    return twin.requires_grad_(False).eval()


@contextlib.contextmanager
def patches_on_device(model: Any) -> Iterator[None]:
    """Attention patches that hold weights (hypernetworks, adapters) where the MODEL computes, as when it is loaded."""
    model.model_patches_to(training_device(model))
    try:
        yield
    finally:
        model.model_patches_to(model.offload_device)


def transformer_options(model: Any) -> dict[str, Any]:
    """The MODEL's own options for a forward pass, with an attention kernel that has a backward pass."""
    options = comfy.utils.deepcopy_list_dict(model.model_options).get("transformer_options", {})
    options["optimized_attention_override"] = attention
    return options


def warnings_about(model: Any) -> list[str]:
    """What a MODEL carries that training cannot take into account."""
    notes = []
    if model.injections:
        notes.append(
            "The MODEL carries injections (a bypass LoRA, for example): training does not see them. "
            "Load that LoRA without bypass to train on top of it."
        )
    if model.wrappers and any(model.wrappers.values()) or "model_function_wrapper" in model.model_options:
        notes.append("The MODEL carries wrappers (caching or acceleration, for example): training goes without them.")
    if model.hook_patches:
        notes.append("The MODEL carries scheduled hooks: training does not see them.")
    return notes


def _copy_tree(module: nn.Module, memo: dict[int, nn.Module]) -> nn.Module:
    """The module tree with new module objects, tensors still shared."""
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


def _rebound(value: Any, modules: dict[int, nn.Module]) -> Any:
    """A method bound to one of the original modules, as patches hang them on objects, bound to its twin instead."""
    owner = modules.get(id(value.__self__)) if isinstance(value, types.MethodType) else None
    return value if owner is None else types.MethodType(value.__func__, owner)


@dataclass(frozen=True)
class _Weights:
    """Where the twin's tensors come from and what they become."""

    patcher: Any
    device: torch.device
    dtype: torch.dtype | None
    main_dtype: torch.dtype | None
    in_ram: set[tuple[int, str]]
    """what waits in RAM: id of the module, name of the parameter"""
    in_fp8: set[int]
    """ids of the modules whose linear weights are quantised"""
    is_multiplied: bool
    """whether those are multiplied in 8 bit too"""
    made: dict[int, nn.Parameter] = field(default_factory=dict)
    """by id of the original, so that what is tied stays tied"""

    def own(self, module: nn.Module, key: str, name: str) -> nn.Parameter:
        """The twin's tensor for one of a module's parameters: base weight, the MODEL's patches, then form and place."""
        backup = self.patcher.backup.get(key)
        weight = module._parameters[name] if backup is None else backup.weight
        assert weight is not None
        if weight.is_meta:
            weight = torch.zeros(weight.shape, dtype=weight.dtype)
        waits = (id(module), name) in self.in_ram
        is_patched = key in self.patcher.patches
        becomes_fp8 = id(module) in self.in_fp8 and name == "weight" and is_linear(module)
        dtype = self._dtype(weight, module, name, is_patched)
        if waits and weight.device.type == "cpu" and not is_patched and dtype == weight.dtype:
            if not (becomes_fp8 and _is_plain(weight)):
                return nn.Parameter(weight.detach(), requires_grad=False)
        own = weight.to(self.device, copy=True)
        if is_patched:
            own = _patched(own, key, name, module, self.patcher)
            dtype = self._dtype(own, module, name, is_patched)
        if becomes_fp8 and _is_plain(own):
            own = to_fp8(own, dtype, self.is_multiplied)
        elif own.dtype != dtype:
            own = own.to(dtype)
        return nn.Parameter((own.to("cpu") if waits else own).detach(), requires_grad=False)

    def _dtype(self, weight: torch.Tensor, module: nn.Module, name: str, is_patched: bool) -> torch.dtype:
        """The number format in which the twin computes with a weight."""
        if not _is_plain(weight):
            return weight.dtype
        stored = getattr(module, f"{name}_comfy_model_dtype", None) or weight.dtype  # under dynamic VRAM, as to be used
        if self.dtype is None:
            return stored
        return self.dtype if stored == self.main_dtype or self.dtype == torch.float32 or is_patched else weight.dtype


def _is_plain(weight: torch.Tensor) -> bool:
    """Neither quantised nor in a format for storage only."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return type(weight) in (torch.Tensor, nn.Parameter) and weight.dtype in floats


def _fill(module: Any, prefix: str, weights: _Weights) -> None:
    """Gives a module of the twin its own tensors."""
    patcher = weights.patcher
    if hasattr(module, "comfy_cast_weights"):
        module.comfy_cast_weights = True
        for kind in ("weight", "bias"):
            wrappers = patcher.weight_wrapper_patches.get(f"{prefix}{kind}", [])
            setattr(module, f"{kind}_function", list(wrappers))
    for name, parameter in module._parameters.items():
        if parameter is not None:
            if id(parameter) not in weights.made:
                weights.made[id(parameter)] = weights.own(module, prefix + name, name)
            module._parameters[name] = weights.made[id(parameter)]
    for name, buffer in module._buffers.items():
        if buffer is not None:
            original = patcher.backup_buffers.get(prefix + name, buffer)
            module._buffers[name] = original.to(weights.device, copy=True)


def _patched(own: torch.Tensor, key: str, name: str, module: nn.Module, model: Any) -> torch.Tensor:
    """The weight with the MODEL's patches on, computed by the host in float32."""
    convert = getattr(module, f"convert_{name}", None)
    weight = own.to(torch.float32) if convert is None else convert(own, inplace=False)
    weight = comfy.lora.calculate_weight(model.patches[key], weight, key)
    put_back = getattr(module, f"set_{name}", None)
    if put_back is None:
        return weight
    put_back(weight, inplace_update=False, seed=comfy.utils.string_to_seed(key))
    result = module._parameters[name]
    assert result is not None
    return result
