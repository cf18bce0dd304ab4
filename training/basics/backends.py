"""What a device's backend is and has. AMD's GPUs are of torch's type "cuda" too, and lack what is NVIDIA's own."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Backend:
    """One row: a maker of devices, as torch knows them."""

    name: str
    is_nvidia: bool = False
    """whether it has compute capabilities, CUDA's driver library, and e4m3 numbers by those capabilities"""
    has_linear_algebra: bool = False
    """whether torch has all factorisations on it; others lack some, or are slower than the CPU"""


NVIDIA = Backend("nvidia", is_nvidia=True, has_linear_algebra=True)
AMD = Backend("amd", has_linear_algebra=True)
OF_TYPES = {
    "cpu": Backend("cpu", has_linear_algebra=True),
    "mps": Backend("apple"),
    "xpu": Backend("intel"),
}


def backend_of(device: torch.device) -> Backend:
    """The backend of a device; of a type that is not known here one that has nothing."""
    if device.type == "cuda":
        return AMD if torch.version.hip else NVIDIA
    return OF_TYPES.get(device.type, Backend(device.type))
