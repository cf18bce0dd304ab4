"""What other nodes have put on a MODEL: patches, wrappers, hooks and options."""

import contextlib
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.utils

from .attention import attention
from .device import training_device
from .families import facts_about


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
    """The MODEL's transformer options for a forward pass, with an attention kernel that has a backward pass."""
    options = comfy.utils.deepcopy_list_dict(model.model_options).get("transformer_options", {})
    options["optimized_attention_override"] = attention
    return options


def warnings_about(model: Any) -> list[str]:
    """What is on a MODEL that training ignores, a sentence or two each."""
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


def captures_with_cuda_malloc(model: Any) -> bool:
    """Whether the MODEL's steps can be captured as CUDA graphs under cudaMallocAsync.

    Its family must allow it, and no other node may have patched its forward pass; LoRAs do not count.
    """
    patches = {name for name in model.object_patches if name != "model_sampling"}
    can_capture = facts_about(model.model).captures_with_cuda_malloc
    return can_capture and not patches and not model.model_options.get("transformer_options")
