"""A trainable view of the graph's MODEL that leaves the MODEL alone.

ComfyUI's weights are inference tensors, may be offloaded, quantised or fetched op by op (dynamic VRAM), and are
shared with every other node. So a run trains on a twin: the same module classes and settings, its own module
objects, and resident normal tensors computed from the MODEL's weights and patches. Hooks and adapters go on the
twin; nothing is ever written to the original, so there is nothing to put back.
"""

import contextlib
import copy
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.utils
import torch
from comfy.clip_model import CLIPLayer
from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint

from ..problems import raise_if_any
from .fusion import attention, fused_rotation
from .products import compute_quantised
from .quantise import AS_LOADED, FP8_MATMUL, in_fp8, is_linear, to_fp8

LOADER_STATE = (
    "_v", "_v_signature", "_v_weight", "_v_bias", "_prefetch", "_pins", "_pin_state", "seed_key",
    "weight_lowvram_function", "bias_lowvram_function", "prev_comfy_cast_weights", "comfy_patched_weights",
)  # fmt: skip
"""What the host's loaders hang on a module; it belongs to the original's weights, not to the twin's."""

IN_PLACE_BLOCKS = (DoubleStreamBlock, SingleStreamBlock, CLIPLayer)
"""Blocks of Flux and its kin and of CLIP: they add in place to what their norms keep for the backward pass."""


@contextlib.contextmanager
def training_mode() -> Iterator[None]:
    """Autograd on, and the host's kernels switched to those autograd knows; all as before on the way out."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        with torch.inference_mode(False), torch.enable_grad(), fused_rotation(), _exact_sums():
            yield
    finally:
        comfy.model_management.in_training = before


@contextlib.contextmanager
def _exact_sums() -> Iterator[None]:
    """Products in fp16 are summed in fp32, also where the host was started with --fast."""
    products: Any = torch.backends.cuda.matmul
    before = getattr(products, "allow_fp16_accumulation", False)
    if before:
        products.allow_fp16_accumulation = False
    try:
        yield
    finally:
        if before:
            products.allow_fp16_accumulation = before


@contextlib.contextmanager
def sampling_mode() -> Iterator[None]:
    """Inference as the host does it, also inside `training_mode`."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        comfy.model_management.in_training = before


def training_device(model: Any) -> torch.device:
    """Where the MODEL computes."""
    return model.load_device


def training_dtype(model: Any, precision: str) -> torch.dtype:
    """The base model's arithmetic for a precision of the config."""
    if precision == "fp32":
        return torch.float32
    device = training_device(model)
    if precision == "fp16":
        return torch.float16
    return torch.bfloat16 if precision == "bf16" or has_bf16(device) else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether a device is a GPU that computes bf16 itself."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def has_fp16(device: torch.device) -> bool:
    """Whether the host trusts a device with fp16: not GTX 16, which computes it wrong, nor older ones."""
    return comfy.model_management.should_use_fp16(device)


def takes_fp16(model: Any) -> bool:
    """Whether the host runs such a MODEL in fp16, which holds no number above 65504."""
    return torch.float16 in model.model.model_config.supported_inference_dtypes


def make_room(device: torch.device) -> None:
    """Lets the host unload its models from a GPU; they come back when a node needs them."""
    if device.type != "cpu":
        comfy.model_management.free_memory(1e30, device)
        comfy.model_management.soft_empty_cache()


def trainable_view(model: Any, dtype: torch.dtype, base_precision: str = AS_LOADED, in_ram: bool = False) -> nn.Module:
    """A twin of MODEL's `BaseModel` that computes in `dtype`; see `twin_of`."""
    twin: Any = twin_of(model, dtype, base_precision, in_ram)
    twin.manual_cast_dtype = dtype
    twin.device = training_device(model)
    twin.current_patcher = None
    guard_residuals(twin)
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
        blocks = [block for _, block in repeated_blocks(getattr(twin, "diffusion_model", nn.Module()))]
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


Around = Callable[[], contextlib.AbstractContextManager[None]]


def checkpoint_blocks(twin: Any, around: Mapping[str, Around] | None = None) -> list[str]:
    """Recomputes activations block by block in the backward pass (Chen et al., arXiv:1604.06174).

    Args:
        twin: from `trainable_view`; its blocks are changed for good.
        around: name of a block -> context in which it runs, each time it does.

    Returns:
        The names of the blocks.
    """
    names = []
    for name, block in repeated_blocks(twin.diffusion_model):
        block.forward = _Checkpointed(block, (around or {}).get(name, contextlib.nullcontext))
        names.append(name)
    return names


class _Checkpointed:
    """Stands in for a block's forward. It holds the block weakly: a twin is to go when the run ends, not later."""

    def __init__(self, block: nn.Module, around: Around):
        self.around = around
        self.method = weakref.WeakMethod(block.forward) if isinstance(block.forward, types.MethodType) else None
        self.patched = None if self.method else block.forward
        self.writes_inputs = isinstance(block, IN_PLACE_BLOCKS)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = self.method() if self.method else self.patched
        assert forward is not None
        if self.writes_inputs:  # on copies: the recomputation needs the inputs as they came
            args, kwargs = tuple(map(_copied, args)), {name: _copied(value) for name, value in kwargs.items()}
        with self.around():
            return forward(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        # Models write into these dicts as they go (which block it is): the second pass must see what the first saw.
        args = tuple(dict(value) if type(value) is dict else value for value in args)
        kwargs = {name: dict(value) if type(value) is dict else value for name, value in kwargs.items()}
        # Nothing here draws from torch's own generators: there are no states to keep.
        try:
            return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        except BaseException as error:
            # A pass that breaks off leaves torch's hooks on, for whatever is computed next, as long as its frames live.
            traceback.clear_frames(error.__traceback__)
            raise


def guard_residuals(twin: nn.Module) -> None:
    """Lets the norms of blocks that add in place work on copies, so that what autograd keeps is not written over.

    Without checkpointing autograd would refuse the backward pass; with it, it would give wrong gradients in silence.
    """
    for block in twin.modules():
        if isinstance(block, IN_PLACE_BLOCKS):
            for layer in block.children():
                if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
                    layer.register_forward_pre_hook(_copy_input)


def _copy_input(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(map(_copied, args))


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) and torch.is_grad_enabled() else value


def streamable(block: nn.Module) -> list[tuple[nn.Module, str]]:
    """The weights of a block that may wait in RAM, as (module, name of the parameter).

    Norms and biases, having one dimension, are next to nothing and stay. So does a block that is a single layer: an
    adapter on it runs around the block, and sees its weight from outside. So do other nodes' kinds of tensors.
    """
    if not any(True for _ in block.children()):
        return []
    return [
        (module, name)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() > 1 and _can_be_sent(parameter)
    ]


def _can_be_sent(parameter: torch.Tensor) -> bool:
    return type(parameter) in (torch.Tensor, nn.Parameter) or is_traceable_wrapper_subclass(parameter)


def repeated_blocks(diffusion_model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The repeated blocks: entries of the outermost module lists; of a sequence its parts, as UNets call those."""
    for list_name, blocks in diffusion_model.named_children():
        if isinstance(blocks, nn.ModuleList):
            for index, block in enumerate(blocks):
                if isinstance(block, nn.Sequential):
                    for part_name, part in block.named_children():
                        if any(True for _ in part.parameters()):
                            yield f"{list_name}.{index}.{part_name}", part
                else:
                    yield f"{list_name}.{index}", block
        elif isinstance(blocks, nn.Sequential) and list_name == "middle_block":
            for part_name, part in blocks.named_children():
                yield f"{list_name}.{part_name}", part
