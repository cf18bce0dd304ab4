"""Which layers get an adapter, and putting adapters on and off."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .adapters import init_lora, lora_conv, lora_linear
from .problems import raise_if_any
from .randomness import tensor_generator

ATTENTION = ("attn", "attention", "proj_in", "proj_out")
FEED_FORWARD = ("ff", "mlp", "feed_forward", "ffn", "img_mlp", "txt_mlp")


@dataclass(frozen=True)
class Target:
    """A layer that gets an adapter."""

    name: str
    """module path in the base model, e.g. diffusion_model.input_blocks.1.1.proj_in"""
    module: nn.Module

    @property
    def key(self) -> str:
        """State-dict key of the weight."""
        return f"{self.name}.weight"


class Adapter(nn.Module):
    """The two factors of one layer, float32."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor, scale: float):
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.scale = scale

    def forward(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """What the adapter adds to the layer's output for the layer's input x."""
        if self.down.dim() == 2:
            return lora_linear(x, self.down, self.up, self.scale)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return lora_conv(x, self.down, self.up, self.scale, layer.stride, layer.padding, layer.dilation)


def find_targets(base_model: nn.Module, targets: str) -> list[Target]:
    """The layers of the diffusion model that a choice of targets names, in module order.

    Args:
        base_model: holds `diffusion_model`.
        targets: one of config.TARGETS. "attention" takes linear layers and 1x1 convolutions of the attention
            blocks (projections in and out included, feed-forward not); "attention and feed-forward" adds the
            feed-forward layers of those blocks, which together are kohya's default; the last takes everything.

    Raises:
        InputError: the model has no such layer.
    """
    found = [
        Target(name, module)
        for name, module in base_model.named_modules()
        if name.startswith("diffusion_model.") and _is_wanted(name, module, targets)
    ]
    if not found:
        raise_if_any("LoRA Config", [f"targets is {targets!r}, but this model has no such layer: choose another."])
    return found


def make_adapters(found: list[Target], rank: int, scale: float, seed: int) -> dict[str, Adapter]:
    """A fresh adapter a target, by state-dict key; each layer's numbers depend on the seed and its name only."""
    adapters = {}
    for target in found:
        weight = target.module.weight
        assert isinstance(weight, torch.Tensor)
        down, up = init_lora(_shape(target.module), rank, tensor_generator(seed, target.name, "adapter"))
        adapters[target.key] = Adapter(down.to(weight.device), up.to(weight.device), scale)
    return adapters


@contextlib.contextmanager
def attached(found: list[Target], adapters: dict[str, Adapter]) -> Iterator[None]:
    """Adds each adapter's output to its layer's output while the context lasts."""
    handles = []
    try:
        for target in found:
            handles.append(target.module.register_forward_hook(_adding(adapters[target.key])))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(adapter: Adapter):
    def hook(layer: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output + adapter(layer, args[0]).to(output.dtype)

    return hook


def _is_wanted(name: str, module: nn.Module, targets: str) -> bool:
    is_linear = isinstance(module, nn.Linear)
    is_convolution = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
    if not (is_linear or is_convolution):
        return False
    if targets == "all linear and convolution":
        return True
    if not (is_linear or module.kernel_size in ((1,), (1, 1), (1, 1, 1))):
        return False
    parts = name.split(".")[1:]
    in_feed_forward = any(part in FEED_FORWARD for part in parts)
    in_attention = any(word in part for part in parts for word in ATTENTION)
    if targets == "attention":
        return in_attention and not in_feed_forward
    return in_attention or in_feed_forward


def _shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return module.out_channels, module.in_channels, *module.kernel_size
