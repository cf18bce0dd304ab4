"""Memory for a model that is not one of the host's own."""

import contextlib
from collections.abc import Iterator

import comfy.model_management
import comfy.model_patcher
import torch


class _Guest(torch.nn.Module):
    """A module in a frame with the attributes that the host's patcher sets."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module
        self.device: torch.device | None = None


def inference_device() -> torch.device:
    """Where the host computes."""
    return comfy.model_management.get_torch_device()


@contextlib.contextmanager
def loaded_for_inference(module: torch.nn.Module) -> Iterator[torch.device]:
    """Puts a module on the host's device through its model management, and off it again.

    The host makes room first and counts the module's memory; on the way out the module leaves the device.
    """
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(_Guest(module), device, torch.device("cpu"))
    try:
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        yield device
    finally:
        patcher.detach()
        comfy.model_management.cleanup_models()
        loaded = comfy.model_management.current_loaded_models
        loaded[:] = [entry for entry in loaded if entry.model is not patcher]
        comfy.model_management.soft_empty_cache()
