"""Dropout of the adapters: drawn for one forward pass and its backward pass."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..basics.errors import raise_if_any
from ..basics.pinned import pinned
from ..basics.randomness import tensor_generator
from . import KINDS, Adapter
from .base import Dropped
from .settings import AdapterConfig


def draw_dropout(adapters: Mapping[str, Adapter], settings: AdapterConfig, seed: int, step: int, micro: int) -> None:
    """Draws all dropout of one forward pass and its backward pass; it holds until the next draw or clear.

    Args:
        step, micro: the optimizer step and the batch within it; the masks depend on them and the seed only.
    """
    if not settings.has_dropout:
        return clear_dropout(adapters)
    coins = torch.rand(len(adapters), generator=tensor_generator(seed, step, micro, "module dropout"))
    is_left_out = coins < settings.module_dropout
    if is_left_out.all():  # a pass without any adapter would have nothing to learn
        is_left_out[coins.argmax()] = False
    generator = tensor_generator(seed, step, micro, "input dropout")
    seeds = torch.randint(2**62, (len(adapters),), generator=generator).tolist()
    left_out = dict(zip(adapters.values(), is_left_out.tolist(), strict=True))
    by_ranks = [each for each in adapters.values() if _drops_ranks(each, settings)]
    ranks = _ranks(by_ranks, left_out, settings.rank_dropout, tensor_generator(seed, step, micro, "rank dropout"))
    for adapter, own_seed in zip(adapters.values(), seeds, strict=True):
        is_whole = left_out[adapter] and not (adapter in ranks and adapter.is_off_without_ranks)
        of_all, place = ranks.get(adapter, (None, (0, None)))
        adapter.dropped = Dropped(is_whole, settings.dropout, own_seed, of_all, place)


def clear_dropout(adapters: Mapping[str, Adapter]) -> None:
    """Turns dropout off until the next draw, as samples and validation need it."""
    for adapter in adapters.values():
        adapter.clear_dropout()


def check_dropout(adapters: Iterable[Adapter | type[Adapter]], settings: AdapterConfig) -> None:
    """Refuses a dropout that one of the adapters, or kinds of adapters, does not support.

    Raises:
        InputError: naming the field and the adapter.
    """
    adapters = list(adapters)
    ranks = sorted({adapter.kind for adapter in adapters if not adapter.has_rank_dropout})
    inputs = sorted({adapter.kind for adapter in adapters if not adapter.has_input_dropout})
    problems = []
    if settings.rank_dropout and ranks:
        problems.append(
            f"rank_dropout is {settings.rank_dropout:g}, but {' and '.join(ranks)} has no ranks to leave out: "
            f"set it to 0, or choose {_either(name for name, kind in KINDS.items() if kind.has_rank_dropout)}."
        )
    if settings.dropout and inputs:
        problems.append(
            f"dropout is {settings.dropout:g}, but {' and '.join(inputs)} turns outputs and has no inputs of its own: "
            "set it to 0 and use module_dropout."
        )
    raise_if_any("LoRA Config", problems)


def can_be_recorded(adapters: Iterable[Adapter], settings: AdapterConfig) -> bool:
    """Whether all dropout is drawn as factors on ranks, which a step recorded once can read anew."""
    return not settings.dropout and (
        not settings.module_dropout or all(adapter.is_off_without_ranks for adapter in adapters)
    )


def _drops_ranks(adapter: Adapter, settings: AdapterConfig) -> bool:
    """Whether an adapter's dropout is drawn as factors on its ranks."""
    return bool(settings.rank_dropout and adapter.has_rank_dropout) or bool(
        settings.module_dropout and adapter.is_off_without_ranks
    )


def _ranks(
    adapters: Iterable[Adapter], left_out: Mapping[Adapter, bool], share: float, generator: torch.Generator
) -> dict[Adapter, tuple[Tensor, tuple[int, int]]]:
    """Each adapter's place in the factors on the ranks of all, which are sent to a device as one tensor."""
    places, start = {}, 0
    for adapter in adapters:
        places[adapter] = start, start + adapter.rank
        start += adapter.rank
    factors = (torch.rand(start, generator=generator) >= share) / (1 - share)  # the mean stays
    for adapter, place in places.items():
        if left_out[adapter] and adapter.is_off_without_ranks:
            factors[slice(*place)] = 0.0
    sent: dict[torch.device, Tensor] = {}
    for adapter in places:
        device = next(adapter.parameters()).device
        if device not in sent:
            is_cuda = device.type == "cuda"
            # Where there is no pinned memory, whoever sends the batches says so.
            sent[device] = (pinned(factors, lambda told: None) if is_cuda else factors).to(device, non_blocking=is_cuda)
    return {adapter: (sent[next(adapter.parameters()).device], place) for adapter, place in places.items()}


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
