"""Adafactor for all matrices of a shape at once.

Thousands of small tensors moved one by one keep a GPU waiting for Python; a batch of them is a few kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import transformers.optimization
from torch import Tensor, nn

LARGEST_BATCH = 2**24
"""numbers in one batch; its temporary tensors take a few times their memory"""


class Adafactor(transformers.optimization.Adafactor):
    """The steps of transformers' Adafactor (Shazeer and Stern, arXiv:1804.04235).

    The state has the same entries for each parameter; its tensors are views of those of the parameter's batch.
    """

    _batches: Sequence[tuple[dict[str, Any], list[_Batch]]] = ()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._batches = ()

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Moves all parameters that have a gradient."""
        if not self._batches or not all(batch.is_whole() for _, batches in self._batches for batch in batches):
            self._batches = [(group, list(self._batches_of(group))) for group in self.param_groups]
        for group, batches in self._batches:
            for batch in batches:
                self._move(group, batch)

    def _batches_of(self, group: dict[str, Any]) -> Iterator[_Batch]:
        by_kind: dict[Any, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                steps = self.state[parameter].get("step", 0)
                by_kind.setdefault((parameter.shape, parameter.device, parameter.dtype, steps), []).append(parameter)
        for members in by_kind.values():
            most = max(1, LARGEST_BATCH // members[0].numel())
            for start in range(0, len(members), most):
                yield self._batch(group, members[start : start + most])

    def _batch(self, group: dict[str, Any], members: list[nn.Parameter]) -> _Batch:
        states, shape = [self.state[each] for each in members], tuple(members[0].shape)
        sizes = {"exp_avg_sq": shape, "RMS": ()}
        if len(shape) >= 2:
            sizes = {"exp_avg_sq_row": shape[:-1], "exp_avg_sq_col": (*shape[:-2], shape[-1]), "RMS": ()}
        if group["beta1"] is not None:
            sizes["exp_avg"] = shape
        joined = {}
        for name, size in sizes.items():
            found = [torch.as_tensor(state.get(name, 0.0)).to(members[0]).expand(size) for state in states]
            joined[name] = torch.stack(found)
            for state, own in zip(states, joined[name], strict=True):
                state[name] = own
        for state in states:
            state.setdefault("step", 0)
        return _Batch(members, [each.grad for each in members], states, joined)

    def _move(self, group: dict[str, Any], batch: _Batch) -> None:
        values, gradient = batch.read()
        state = batch.state
        by_member = (-1, *(1,) * (values.dim() - 1))
        step = batch.states[0]["step"] + 1
        for each in batch.states:
            each["step"] = step
        state["RMS"].copy_(_rms(values))
        rate = self._get_lr({**group, "scale_parameter": False}, {"step": step})
        if group["scale_parameter"]:
            rate = state["RMS"].clamp(min=group["eps"][1]).view(by_member) * rate
        decay = 1.0 - step ** group["decay_rate"]
        squares = gradient.square().add_(group["eps"][0])
        if "exp_avg_sq_row" in state:
            rows, columns = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            rows.mul_(decay).add_(squares.mean(dim=-1), alpha=1.0 - decay)
            columns.mul_(decay).add_(squares.mean(dim=-2), alpha=1.0 - decay)
            update = self._approx_sq_grad(rows, columns).mul_(gradient)
        else:
            update = state["exp_avg_sq"].mul_(decay).add_(squares, alpha=1.0 - decay).rsqrt().mul_(gradient)
        update.div_((_rms(update) / group["clip_threshold"]).clamp_(min=1.0).view(by_member)).mul_(rate)
        if "exp_avg" in state:
            update = state["exp_avg"].mul_(group["beta1"]).add_(update, alpha=1 - group["beta1"])
        if group["weight_decay"]:
            values.sub_(values * rate * group["weight_decay"])
        values.sub_(update)
        batch.write_back()


@dataclass
class _Batch:
    """Parameters of one shape, with the optimizer's state of each and of all."""

    members: list[nn.Parameter]
    member_gradients: list[Any]
    states: list[dict[str, Any]]
    """of each member; its tensors are views of those in `state`"""
    state: dict[str, Tensor]
    """(n, ...) by name"""

    def __post_init__(self) -> None:
        values, gradients = _as_one(self.members), _as_one(self.member_gradients)
        self._views = None if values is None or gradients is None else (values, gradients)
        """(values, gradients) of the members' own memory; None where they do not lie side by side"""
        self._copies: list[Tensor] = []

    def is_whole(self) -> bool:
        """Whether the members have the gradients of before; else the batch must be made anew."""
        pairs = zip(self.members, self.member_gradients, strict=True)
        return all(member.grad is gradient for member, gradient in pairs)

    def read(self) -> tuple[Tensor, Tensor]:
        """(values, gradients) of the members, (n, *shape); changed values must be written back."""
        if self._views is not None:
            return self._views
        values = _copied(self.members)
        self._copies = list(values)
        return values, _copied(self.member_gradients)

    def write_back(self) -> None:
        """Brings changed values to the members."""
        if self._copies:
            torch._foreach_copy_([member.detach() for member in self.members], self._copies)
            self._copies = []


def _copied(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.detach() for tensor in tensors])


def _as_one(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors of one shape as one (n, *shape) of the same memory; None where they do not lie at equal distances."""
    first, places = tensors[0].detach(), [tensor.data_ptr() for tensor in tensors]
    gaps = {after - before for before, after in pairwise(places)} or {first.nbytes}
    distance = gaps.pop()
    in_one = len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    if gaps or distance < first.nbytes or not in_one or not all(each.is_contiguous() for each in tensors):
        return None
    return first.as_strided((len(places), *first.shape), (distance // first.element_size(), *first.stride()))


def _rms(values: Tensor) -> Tensor:
    """(n, ...) -> (n,) root mean square of each member."""
    return values.flatten(1).norm(2, dim=1) / values[0].numel() ** 0.5
