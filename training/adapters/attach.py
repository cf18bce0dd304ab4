"""The choice of the layers that get an adapter, and attaching adapters to them."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..basics.errors import raise_if_any
from ..basics.randomness import tensor_generator
from . import Adapter, new_adapter
from .base import CONVOLUTIONS, is_linear, layer_shape
from .dropout import check_dropout
from .layer_rules import DIFFUSION_MODEL, LayerRule, check_layer_rules, parse_layer_rules, rule_for
from .products import PLAIN, LayerProducts
from .settings import BLOCK_TARGETS, AdapterConfig
from .shared_input import AdaptedForward, unshare

FEED_FORWARD = re.compile(r"(.*_)?(ff|ffn|mlp|feed_forward)(_.*|[CX])?")
ATTENTION = re.compile(r".*(attn|attention).*|proj_in|proj_out|[qkv]")
NEITHER = re.compile(r".*(modulation|adaln|embed|norm).*", re.IGNORECASE)
UNET_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.")
CLIP_LAYER = re.compile(r".*text_model\.encoder\.layers\.\d+\.(self_attn|mlp)\.\w+")


@dataclass(frozen=True)
class Target:
    """A layer that gets an adapter."""

    name: str
    """module path in the base model, e.g. diffusion_model.input_blocks.1.1.proj_in, or in the text encoder"""
    module: nn.Module

    @property
    def key(self) -> str:
        """State-dict key of the weight."""
        return f"{self.name}.weight"


def find_targets(
    base_model: nn.Module, targets: str, fused_layers: str = "", target_blocks: Mapping[str, str] | None = None
) -> list[Target]:
    """The layers of the diffusion model that the recipe's `targets` means, in module order.

    Args:
        base_model: holds `diffusion_model`.
        targets: one of TARGETS. "attention" takes linear layers and 1x1 convolutions of the blocks'
            attention (projections in and out included, feed-forward not; Flux's fused layers too); "attention and
            feed-forward" adds the blocks' feed-forward layers, which together are kohya's default; "attention,
            feed-forward and convolutions" takes all of a UNet's blocks, as kohya's conv_dim does; "all linear and
            convolution" takes modulation, embedders and the final layers too; the SDXL choices take the linear
            layers and 1x1 convolutions of one block.
        fused_layers: regular expression for paths of layers that hold attention and feed-forward in one matrix;
            empty = none.
        target_blocks: choice of targets that names one block -> start of the block's path.

    Raises:
        InputError: the model has no such layer.
    """
    found = [
        Target(name, module)
        for name, module in base_model.named_modules()
        if name.startswith(DIFFUSION_MODEL)
        and _is_wanted(name.removeprefix(DIFFUSION_MODEL), module, targets, fused_layers, target_blocks or {})
    ]
    if not found:
        raise_if_any("LoRA Config", [f"targets is {targets!r}, but this model has no such layer: choose another."])
    return found


def find_text_targets(text_encoder: nn.Module) -> list[Target]:
    """The attention and feed-forward layers of every CLIP text model within, as in kohya's trainer.

    Args:
        text_encoder: ComfyUI's cond_stage_model.

    Raises:
        InputError: there is no CLIP text model.
    """
    found = [
        Target(name, module)
        for name, module in text_encoder.named_modules()
        if CLIP_LAYER.fullmatch(name) and is_linear(module)
    ]
    if not found:
        problem = (
            "text_encoder_learning_rate is above 0, but CLIP holds no CLIP-L or CLIP-G text encoder, and no other kind "
            "is trained here: set it to 0."
        )
        raise_if_any("LoRA Config", [problem])
    return found


def targets_of(root: nn.Module, keys: Iterable[str]) -> list[Target]:
    """The layers of a model or text encoder that state-dict keys name, in module order; unknown keys are ignored."""
    wanted = {key.removesuffix(".weight") for key in keys}
    return [Target(name, module) for name, module in root.named_modules() if name in wanted]


def make_adapters(found: Sequence[Target], settings: AdapterConfig, seed: int) -> dict[str, Adapter]:
    """A fresh adapter for each target, by state-dict key; its numbers depend on the seed and the layer's name only.

    Args:
        found: all targets of the run, those of the text encoders included: each layer rule must fit one of them.

    Raises:
        InputError: layer_rules is ill-formed, fits no layer or excludes all; the adapter does not support the dropout.
    """
    rules = parse_layer_rules(settings.layer_rules)
    check_layer_rules(rules, [target.name for target in found])
    adapters = {}
    for target in found:
        rank, alpha = rank_and_alpha(settings, rule_for(rules, target.name), layer_shape(target.module))
        if rank:
            generator = tensor_generator(seed, target.name, "adapter")
            adapters[target.key] = new_adapter(
                settings.kind, target.module, rank, alpha, generator, factor=settings.lokr_factor
            )
    if not adapters:
        raise_if_any("LoRA Config", ["layer_rules gives every layer rank=0: leave some to train."])
    check_dropout(adapters.values(), settings)
    return adapters


def rank_and_alpha(settings: AdapterConfig, rule: LayerRule, weight_shape: tuple[int, ...]) -> tuple[int, float]:
    """A layer's rank, 0 for no adapter, and its alpha as in a file: scale = alpha / rank.

    rsLoRA's alpha / sqrt(rank) (Kalajdzievski, arXiv:2312.03732) is written as an alpha of alpha * sqrt(rank).
    """
    rank, alpha = settings.rank, settings.alpha
    if math.prod(weight_shape[2:]) > 1:
        rank, alpha = settings.conv_rank or rank, settings.conv_alpha or alpha
    rank = rank if rule.rank is None else rule.rank
    alpha = alpha if rule.alpha is None else rule.alpha
    return rank, alpha * math.sqrt(rank) if settings.rslora else alpha


def adapters_by_rate(
    adapters: Mapping[str, Adapter], learning_rate: float, rules: Sequence[LayerRule]
) -> dict[float, list[Adapter]]:
    """The adapters by peak learning rate."""
    groups: dict[float, list[Adapter]] = {}
    for key, adapter in adapters.items():
        factor = rule_for(rules, key.removesuffix(".weight")).learning_rate
        groups.setdefault(learning_rate * factor, []).append(adapter)
    return groups


@contextlib.contextmanager
def attached(
    found: Iterable[Target], adapters: Mapping[str, Adapter], products: LayerProducts = PLAIN
) -> Iterator[dict[str, AdaptedForward]]:
    """Attaches each adapter to its layer within the context, by replacing the forward of the module object.

    Args:
        found: targets without an adapter are left alone.
        products: multiply by the layers' weights.

    Yields:
        The layers' forwards by state-dict key.

    Raises:
        KeyError: an adapter has no layer.
    """
    layers = {target.key: target.module for target in found}
    before: list[tuple[nn.Module, Any]] = []
    forwards: dict[str, AdaptedForward] = {}
    try:
        for key, adapter in adapters.items():
            layer: Any = layers[key]
            before.append((layer, vars(layer).get("forward")))
            forwards[key] = layer.forward = AdaptedForward(layer, adapter, products)
        yield forwards
    finally:
        for layer, forward in reversed(before):
            if forward is None:
                vars(layer).pop("forward", None)
            else:
                layer.forward = forward
        unshare(forwards.values())  # breaks their reference cycle


def can_adapt(target: Target) -> bool:
    """Whether the layer is of a kind that is trained: linear, or a convolution of one group."""
    module = target.module
    return is_linear(module) or (isinstance(module, CONVOLUTIONS) and module.groups == 1)


def is_convolution(target: Target) -> bool:
    """Whether the layer is a convolution larger than 1x1, which has a rank and alpha of its own."""
    return math.prod(layer_shape(target.module)[2:]) > 1


def describe(adapters: Mapping[str, Adapter]) -> str:
    """The adapters in words, e.g. "lora on 192 layers, 3,188,736 parameters"; those of text encoders apart."""
    model = [adapter for key, adapter in adapters.items() if key.startswith(DIFFUSION_MODEL)]
    text = [adapter for key, adapter in adapters.items() if not key.startswith(DIFFUSION_MODEL)]
    return "; ".join([*([_count(model)] if model else []), *([f"{_count(text)} in the text encoders"] if text else [])])


def _count(adapters: Sequence[Adapter]) -> str:
    numbers = {
        kind: sum(adapter.kind == kind for adapter in adapters) for kind in dict.fromkeys(a.kind for a in adapters)
    }
    layers = " and ".join(f"{kind} on {number} layer{'s' * (number != 1)}" for kind, number in numbers.items())
    return f"{layers}, {sum(p.numel() for adapter in adapters for p in adapter.parameters()):,} parameters"


def _is_wanted(name: str, module: nn.Module, targets: str, fused_layers: str, target_blocks: Mapping[str, str]) -> bool:
    if not can_adapt(Target(name, module)):
        return False
    if targets == "all linear and convolution":
        return True
    if targets == "attention, feed-forward and convolutions" and _in_unet_block(name):
        return True
    if math.prod(layer_shape(module)[2:]) > 1:
        return False
    if targets in BLOCK_TARGETS:
        return targets in target_blocks and name.startswith(target_blocks[targets])
    if fused_layers and re.fullmatch(fused_layers, name):
        return True
    parts = _inside_block(name)
    if any(NEITHER.fullmatch(part) for part in parts):
        return False
    if any(FEED_FORWARD.fullmatch(part) for part in parts):
        return targets != "attention"
    return any(ATTENTION.fullmatch(part) for part in parts)


def _in_unet_block(name: str) -> bool:
    """Whether a layer is in a UNet's residual, attention, down and up blocks, without the UNet's first convolution."""
    return UNET_BLOCK.match(name) is not None and not name.startswith("input_blocks.0.")


def _inside_block(name: str) -> list[str]:
    """The parts of a module path after its first number: the layer's path within a repeated block."""
    parts = name.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))
    return parts[first + 1 :]
