"""What other nodes have put on a MODEL: patches, wrappers, hooks and options."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import nn

from ..basics.errors import InputError, raise_if_any
from .attention import attention
from .blocks import repeated_blocks
from .device import training_device
from .families import facts_about
from .guard import HAND_OVER, Guarded, check_gradient, name_of
from .page import first_line

PATCH_KINDS = ("patches", "patches_replace")
"""Transformer options that hold patches: {kind: {place: [patch] or {block: patch}}}."""
SAMPLING = "model_sampling"
"""The object patch that is read as noise levels and prediction; see `model_sampling`."""
WRAPPERS = ("model_function_wrapper", "sampler_calc_cond_batch_function")
"""Model options that hold a function around the forward pass."""
GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
"""Model options that hold functions of what a sampler makes of the predictions."""
ONE_BY_ONE = "lora_kiln_one_by_one"
"""Transformer option: each picture of a batch goes through the model alone. Patches read one noise level for all."""
COMPLAINTS = ("inplace operation", "does not require grad", "Inference tensors", "through the graph a second time")
"""Parts of autograd's errors about code that was not written for training."""


@contextlib.contextmanager
def patches_on_device(model: Any) -> Iterator[None]:
    """Moves attention patches that hold weights (hypernetworks, adapters) to the MODEL's compute device, and back."""
    model.model_patches_to(training_device(model))
    try:
        yield
    finally:
        model.model_patches_to(model.offload_device)


@contextlib.contextmanager
def without_injections(model: Any) -> Iterator[None]:
    """Takes off what was injected into the layers (bypass LoRAs) for this MODEL or a clone, and puts it back.

    Clones share their layers, and what a sampler has loaded stays injected until it is unloaded.
    """
    loaded = [each.model for each in comfy.model_management.current_loaded_models]
    sharing = [each for each in loaded if each is not None and each is not model and each.model is model.model]
    with contextlib.ExitStack() as stack:
        for each in (model, *sharing):
            stack.enter_context(each.use_ejected())
        yield


def transformer_options(model: Any) -> dict[str, Any]:
    """The MODEL's transformer options for a twin's forward pass: its patches, and attention with a backward pass."""
    options = comfy.utils.deepcopy_list_dict(model.model_options).get("transformer_options", {})
    for kind in ("wrappers", "callbacks"):
        options.pop(kind, None)
    for kind in PATCH_KINDS:
        if kind in options:
            options[kind] = {place: _guarded(patches) for place, patches in options[kind].items()}
    options["optimized_attention_override"] = attention
    options[ONE_BY_ONE] = bool(patch_names(model))
    return options


def _guarded(patches: Any) -> Any:
    """A list of patches or a dict of them, each guarded."""
    if isinstance(patches, dict):
        return {block: _guarded(patch) for block, patch in patches.items()}
    if isinstance(patches, list | tuple):
        return type(patches)(_guarded(patch) for patch in patches)
    return Guarded(patches, name_of(patches)) if _is_code(patches) else patches


def _is_code(value: Any) -> bool:
    """Whether a value can be called; a class stands for the layers that a patch is for."""
    return callable(value) and not isinstance(value, type)


def guard_object_patches(twin: Any, model: Any) -> None:
    """Makes the code among the MODEL's object patches, which is on its twin, raise an error that names it.

    See `Guarded`; of modules the gradient alone is looked at.
    """
    for path, patch in _object_code(model).items():
        name, code = f"{path} ({name_of(patch)})", comfy.utils.get_attr(twin, path)
        if isinstance(code, nn.Module):
            code.register_forward_hook(_gradient_hook(name), with_kwargs=True)
            continue
        owner = path.rpartition(".")[0]
        holds_blocks = not owner or any(
            f"diffusion_model.{block}.".startswith(f"{owner}.") for block, _ in repeated_blocks(twin)
        )
        comfy.utils.set_attr(twin, path, Guarded(code, name, on_copies=not holds_blocks))


def _gradient_hook(name: str) -> Callable[..., None]:
    def check(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if torch.is_grad_enabled():
            check_gradient(name, args, kwargs, result)

    return check


def _object_code(model: Any) -> dict[str, Any]:
    """The object patches that are code: functions and modules, by path."""
    return {path: each for path, each in model.object_patches.items() if callable(each) and path != SAMPLING}


def patch_names(model: Any) -> list[str]:
    """The code that other nodes have put into a MODEL's forward pass, by names; LoRAs do not count."""
    names = map(name_of, _patches(model))
    return list(dict.fromkeys([*names, *(f"{path} ({name_of(each)})" for path, each in _object_code(model).items())]))


def patch_problems(model: Any) -> list[str]:
    """Patches that cannot be trained under, a sentence each: those with a model of their own (control nets)."""
    holders = [getattr(patch, "__self__", patch) for patch in _patches(model)]
    names = dict.fromkeys(name_of(holder) for holder in holders if getattr(holder, "models", list)())
    return [
        f"model carries the patch {name}, which shows it a picture by a model of its own (a control net, for example): "
        f"pictures of a dataset have none. {HAND_OVER}"
        for name in names
    ]


def _patches(model: Any) -> list[Any]:
    options = model.model_options.get("transformer_options", {})
    return [code for kind in PATCH_KINDS for code in _leaves(options.get(kind, {})) if _is_code(code)]


def _leaves(patches: Any) -> Iterator[Any]:
    """The entries of nested dicts and lists."""
    members = patches.values() if isinstance(patches, dict) else patches if isinstance(patches, list | tuple) else None
    if members is None:
        yield patches
    for member in members or ():
        yield from _leaves(member)


@contextlib.contextmanager
def patches_blamed(model: Any) -> Iterator[None]:
    """An error of autograd in the context becomes an InputError that names the MODEL's patches, if it carries any."""
    try:
        yield
    except RuntimeError as error:
        names = patch_names(model)
        if not names or not any(complaint in str(error) for complaint in COMPLAINTS):
            raise
        raise InputError("MODEL", [_no_gradients(names, first_line(error))]) from error


def check_reached(model: Any, gradients: Mapping[str, bool]) -> None:
    """Refuses object patches under which layers get no gradient.

    Args:
        gradients: whether a layer got a gradient from a backward pass, by state-dict key of its weight.

    Raises:
        InputError: names the patches.
    """
    if not any(gradients.values()):
        return
    problems = []
    for path, patch in _object_code(model).items():
        owner = path if isinstance(patch, nn.Module) else path.rpartition(".")[0]
        below = [key for key in gradients if key.startswith(f"{owner}.")]
        if below and not any(gradients[key] for key in below):
            problems.append(_no_gradients([f"{path} ({name_of(patch)})"], f"layer {below[0]} gets none"))
    raise_if_any("MODEL", problems)


def _no_gradients(names: list[str], why: str) -> str:
    return f"gradients do not pass its patches {', '.join(names)} ({why}). {HAND_OVER}"


def warnings_about(model: Any) -> list[str]:
    """What is on a MODEL that training ignores, or that makes it slower, a sentence or two each."""
    notes = []
    if model.injections:
        notes.append(
            "The MODEL carries injections (a bypass LoRA, for example): training does not see them. "
            "Load that LoRA without bypass to train on top of it."
        )
    options = model.model_options.get("transformer_options", {})
    wrappers = [*_leaves(model.wrappers), *_leaves(options.get("wrappers", {}))]
    wrappers += [code for name in WRAPPERS if (code := model.model_options.get(name))]
    if wrappers:
        names = ", ".join(dict.fromkeys(map(name_of, wrappers)))
        notes.append(f"The MODEL carries wrappers ({names}): training goes without them.")
    guidance = [code for name in GUIDANCE for code in _leaves(model.model_options.get(name, [])) if code]
    if guidance:
        names = ", ".join(dict.fromkeys(map(name_of, guidance)))
        notes.append(f"The MODEL carries guidance ({names}): the run's sample pictures are drawn without it.")
    if model.hook_patches:
        notes.append("The MODEL carries scheduled hooks: training does not see them.")
    if override := options.get("optimized_attention_override"):
        notes.append(f"The MODEL carries its own attention ({name_of(override)}): training uses one with gradients.")
    if names := patch_names(model):
        notes.append(
            f"The MODEL is trained with its patches ({', '.join(names)}): each picture goes through it alone, "
            "as such code expects, which is slower."
        )
    return notes


def captures_with_cuda_malloc(model: Any) -> bool:
    """Whether the MODEL's steps can be captured as CUDA graphs under cudaMallocAsync.

    Its family must allow it, and no other node may have patched its forward pass; LoRAs do not count.
    """
    patches = {name for name in model.object_patches if name != "model_sampling"}
    can_capture = facts_about(model.model).captures_with_cuda_malloc
    return can_capture and not patches and not model.model_options.get("transformer_options")
