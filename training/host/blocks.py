"""The repeated blocks of a model: finding them, gradient checkpointing, residuals that are added in place."""

import contextlib
import traceback
import types
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .families import facts_about

MakeContext = Callable[[], contextlib.AbstractContextManager[None]]


def checkpoint_blocks(twin: Any, contexts: Mapping[str, MakeContext] | None = None, draws: bool = False) -> list[str]:
    """Recomputes activations block by block in the backward pass (Chen et al., arXiv:1604.06174).

    Args:
        twin: from `trainable_twin`; its blocks are changed in place.
        contexts: name of a block -> makes the context for each of its runs, recomputations included.
        draws: whether code in the blocks draws from torch's generators: a recomputation then draws the same.

    Returns:
        The names of the blocks.
    """
    names, in_place = [], facts_about(twin).in_place_blocks
    for name, block in repeated_blocks(twin):
        make_context = (contexts or {}).get(name, contextlib.nullcontext)
        block.forward = _Checkpointed(block, make_context, writes_inputs=_is_one_of(block, in_place), draws=draws)
        names.append(name)
    return names


class _Checkpointed:
    """Replaces a block's forward. It refers to the block weakly: a cycle would keep the twin alive after the run."""

    def __init__(self, block: nn.Module, make_context: MakeContext, *, writes_inputs: bool, draws: bool):
        self.make_context, self.draws = make_context, draws
        self.method = weakref.WeakMethod(block.forward) if isinstance(block.forward, types.MethodType) else None
        self.patched = None if self.method else block.forward
        self.writes_inputs = writes_inputs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = self.method() if self.method else self.patched
        assert forward is not None
        if self.writes_inputs:  # on copies: the recomputation needs the original inputs
            args, kwargs = tuple(map(_copied, args)), {name: _copied(value) for name, value in kwargs.items()}
        with self.make_context():
            return forward(*args, **kwargs)

    def _forward(self, _: torch.Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """The forward pass; torch keeps the generators of the devices of tensors in `args`, not in `kwargs`."""
        return self.forward(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        # Models write into these dicts (e.g. the block's index): the recomputation must see the same values.
        args = tuple(dict(value) if type(value) is dict else value for value in args)
        kwargs = {name: dict(value) if type(value) is dict else value for name, value in kwargs.items()}
        tensor = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)), None)
        try:
            return checkpoint(
                self._forward, tensor, *args, use_reentrant=False, preserve_rng_state=self.draws, **kwargs
            )
        except BaseException as error:
            # After an error torch's saved-tensor hooks stay active for later computations while the frames are alive.
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


def repeated_blocks(base_model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of each repeated block of a `BaseModel` (or its twin), in the order of the forward pass.

    They are the entries of the module lists that the family's row names and the model has. An entry that is a
    sequence, as in UNets, gives its parts that have weights. Models without a row: the entries of the outermost lists.
    """
    network = base_model.diffusion_model
    outermost = (name for name, child in network.named_children() if isinstance(child, nn.ModuleList))
    for list_name in facts_about(base_model).blocks or outermost:
        blocks = getattr(network, list_name, None)
        if not isinstance(blocks, nn.Module):  # small UNets have no middle, Lumina's have no siglip_refiner
            continue
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
