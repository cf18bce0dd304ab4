"""Networks in training: twins of the graph's models, with adapters for their layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from .. import host
from ..adapters import Adapter
from ..adapters.attach import Target, find_targets, find_text_targets, make_adapters
from ..adapters.attach import targets_of as targets_named
from ..adapters.shared_input import AdaptedForward, SharedInput
from ..basics.errors import raise_if_any
from ..config import LoRAConfig
from ..learning.family import Family
from ..learning.fitting import Placement


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The graph's models, and the recipe by which they are trained."""

    model: Any
    """the graph's MODEL; it is only read"""
    clip: Any
    """the graph's CLIP; it is only read"""
    config: LoRAConfig
    family: Family
    names: Mapping[str, Any]
    """names of each layer in LoRA files, by state-dict key of its weight"""
    note: Callable[[str], None]
    """called with a sentence for each thing that is slower than it could be"""

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders are trained."""
        return self.config.optimization.trains_text_encoders

    @cached_property
    def device(self) -> torch.device:
        """The device that the model is trained on."""
        return host.training_device(self.model)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The number format that the model computes in."""
        return host.training_dtype(self.model, self.config.run.precision)


@dataclass
class Networks:
    """Twins of the graph's models, and the adapters that are trained on them."""

    model: Any
    text_encoder: Any | None
    """None where the text encoders are not trained"""
    targets: list[Target]
    adapters: dict[str, Adapter]
    """by state-dict key of the base weight"""
    forwards: dict[str, AdaptedForward] = field(default_factory=dict)
    """of the layers with their adapters on, by state-dict key of the base weight"""
    shared: list[SharedInput] = field(default_factory=list)
    """groups of layers that are computed together"""


def make_networks(setup: Setup, adapters: dict[str, Adapter], placement: Placement) -> Networks:
    """Twins of MODEL and, where they are trained, of the text encoders; the adapters are not attached yet.

    Args:
        adapters: those of a LoRA that is continued, by state-dict key; empty: fresh ones are made.

    Raises:
        InputError: a layer with an adapter has no name in LoRA files, or the recipe's layers do not exist.
    """
    model = _twin(setup, placement)
    text_encoder = host.trainable_text_encoder(setup.clip) if setup.trains_text else None
    targets = targets_of(setup, adapters, model, text_encoder)
    adapters = adapters or make_adapters(targets, setup.config.adapter, setup.config.run.seed)
    unnamed = sorted(adapters.keys() - setup.names.keys())  # they could not be saved after the last step
    if unnamed:
        problem = f"layer {unnamed[0]} is not the model's own (compiled, or replaced?): take that node out."
        raise_if_any("MODEL", [problem])
    return Networks(model, text_encoder, targets, adapters)


def targets_of(setup: Setup, adapters: Mapping[str, Adapter], model: Any, text_encoder: Any | None) -> list[Target]:
    """The layers to train: those of a continued LoRA, or those that the recipe chooses.

    Args:
        adapters: of the continued LoRA, by state-dict key; empty: there is none.
    """
    if adapters:
        roots = [model] if text_encoder is None else [model, text_encoder]
        return [target for root in roots for target in targets_named(root, adapters)]
    text_targets = [] if text_encoder is None else find_text_targets(text_encoder)
    family = host.family_of(setup.model)
    found = find_targets(model, setup.config.adapter.targets, family.fused_layers, family.target_blocks)
    return [*found, *text_targets]


def _twin(setup: Setup, placement: Placement) -> Any:
    """A trainable twin of MODEL, its weights and activations placed."""
    run, streams = setup.config.run, placement.resident < 1.0
    draws = bool(host.patch_names(setup.model))
    model = host.trainable_twin(setup.model, setup.dtype, run.base_precision, in_ram=streams)
    if setup.config.objective.zero_terminal_snr:
        host.set_sigmas(model, setup.family.prediction.sigmas)
    if setup.device.type == "cuda" and setup.dtype != torch.float32 and (obstacle := host.fuse_layers(model)):
        setup.note(f"Layers go without fused kernels, which is slower: Triton does not work ({obstacle}).")
    if kept := _kept_formats(model, run.base_precision):
        setup.note(f"base_precision is {run.base_precision}, but these linear weights stay as they are loaded: {kept}.")
    if run.base_precision == host.FP8_MATMUL and (why := host.fp8_matmul_obstacle(setup.device, setup.dtype)):
        setup.note(f"8-bit products are computed from rounded numbers in {setup.dtype}, which is slower: {why}.")
    if streams:
        weights = host.weight_bytes(setup.model, setup.dtype, run.base_precision)
        streamed = host.stream_blocks(model, int(placement.resident * weights), draws)
        if not streamed.is_pinned:
            setup.note("Weights from RAM come slower than they could: the system gives no pinned memory.")
    elif placement.checkpointing and not host.checkpoint_blocks(model, draws=draws):
        setup.note("gradient_checkpointing has no effect: this model has no list of blocks.")
    return model


def _kept_formats(model: Any, base_precision: str) -> str:
    """The formats of the blocks' linear weights that are not stored as the recipe asks, with their numbers."""
    if base_precision == "as loaded":
        return ""
    formats = host.linear_formats(model)
    return ", ".join(f"{number} in {name}" for name, number in sorted(formats.items()) if name != host.OURS)
