"""GPU memory for a model that the host did not load, such as a captioner."""

import contextlib
from collections.abc import Iterator

import comfy.model_management
import comfy.model_patcher
import torch


class _Wrapper(torch.nn.Module):
    """A module inside a module on which the host's ModelPatcher can set attributes."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module
        self.device: torch.device | None = None


def inference_device() -> torch.device:
    """The host's compute device."""
    return comfy.model_management.get_torch_device()


@contextlib.contextmanager
def loaded_for_inference(module: torch.nn.Module) -> Iterator[torch.device]:
    """Loads a module onto the host's device while the context lasts, through the host's model management.

    The host makes room for it and counts its memory; on exit the module is unloaded.

    Yields:
        The device.
    """
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(_Wrapper(module), device, torch.device("cpu"))
    try:
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        yield device
    finally:
        patcher.detach()
        comfy.model_management.cleanup_models()
        loaded = comfy.model_management.current_loaded_models
        loaded[:] = [entry for entry in loaded if entry.model is not patcher]
        comfy.model_management.soft_empty_cache()
