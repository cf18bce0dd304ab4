"""How far two sets of tensors are apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def distance(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """The norm of the difference over the norm of theirs, all tensors together."""
    assert ours.keys() == theirs.keys()
    apart = torch.stack([(ours[name].detach().double() - theirs[name].detach().double()).norm() for name in ours])
    whole = torch.stack([tensor.detach().double().norm() for tensor in theirs.values()])
    return float(apart.norm() / whole.norm())
