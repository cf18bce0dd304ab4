"""The repeated blocks of a model: checkpointing, in-place residuals, weights that can wait in RAM."""

import contextlib
import traceback
import types
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint

from .families import facts_about

Around = Callable[[], contextlib.AbstractContextManager[None]]


def checkpoint_blocks(twin: Any, around: Mapping[str, Around] | None = None) -> list[str]:
    """Recomputes activations block by block in the backward pass (Chen et al., arXiv:1604.06174).

    Args:
        twin: from `trainable_view`; its blocks are changed for good.
        around: name of a block -> context in which it runs, each time it does.

    Returns:
        The names of the blocks.
    """
    names, in_place = [], facts_about(twin).in_place_blocks
    for name, block in repeated_blocks(twin):
        context = (around or {}).get(name, contextlib.nullcontext)
        block.forward = _Checkpointed(block, context, _is_one_of(block, in_place))
        names.append(name)
    return names


class _Checkpointed:
    """Stands in for a block's forward. It holds the block weakly: a twin is to go when the run ends, not later."""

    def __init__(self, block: nn.Module, around: Around, writes_inputs: bool):
        self.around = around
        self.method = weakref.WeakMethod(block.forward) if isinstance(block.forward, types.MethodType) else None
        self.patched = None if self.method else block.forward
        self.writes_inputs = writes_inputs

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


def guard_residuals(twin: nn.Module, in_place_blocks: Collection[str]) -> None:
    """Makes the norms of blocks that add in place work on copies, so that tensors saved by autograd stay as they are.

    Without checkpointing autograd would refuse the backward pass; with it, gradients would be wrong without an error.

    Args:
        in_place_blocks: class names.
    """
    for block in twin.modules():
        if _is_one_of(block, in_place_blocks):
            for layer in block.children():
                if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
                    layer.register_forward_pre_hook(_copy_input)


def _is_one_of(block: nn.Module, class_names: Collection[str]) -> bool:
    return any(kind.__name__ in class_names for kind in type(block).__mro__)


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


def repeated_blocks(base_model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each repeated block of a `BaseModel` (or its twin), in the order of the forward pass.

    They are the entries of the module lists that the family's row names. An entry that is a sequence, as in UNets,
    gives its parts that have weights. Models without a row: the entries of the outermost module lists.
    """
    network = base_model.diffusion_model
    outermost = (name for name, child in network.named_children() if isinstance(child, nn.ModuleList))
    for list_name in facts_about(base_model).blocks or outermost:
        blocks = network.get_submodule(list_name)
        if isinstance(blocks, nn.Sequential):  # a UNet's middle: one block
            yield from _parts(list_name, blocks)
            continue
        for index, block in enumerate(blocks.children()):
            if isinstance(block, nn.Sequential):
                yield from _parts(f"{list_name}.{index}", block)
            else:
                yield f"{list_name}.{index}", block


def _parts(name: str, sequence: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    for part_name, part in sequence.named_children():
        if any(True for _ in part.parameters()):
            yield f"{name}.{part_name}", part
