"""Low-rank factors of a weight difference: sums of several, and the best approximation of a lower rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..basics.linear_algebra import qr, svd


@dataclass(frozen=True)
class Factors:
    """A weight difference of rank r: up (m, r) @ down (r, n), float32."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def concatenated(terms: Sequence[tuple[float, Factors]]) -> Factors:
    """sum_i w_i * up_i @ down_i as factors, exactly: the ranks add up, and up is multiplied by the weights."""
    up = torch.cat([weight * factors.up for weight, factors in terms], dim=1)
    return Factors(up, torch.cat([factors.down for _, factors in terms]))


def reduced(factors: Factors, rank: int) -> tuple[Factors, Tensor]:
    """The best approximation of a lower rank (Eckart and Young, 1936), and all singular values, descending.

    up = Q_u R_u and down^T = Q_d R_d, so the singular values of up @ down are those of the small R_u R_d^T.
    """
    q_up, r_up = qr(factors.up)
    q_down, r_down = qr(factors.down.T)
    u, s, vh = svd(r_up @ r_down.T)
    root = s[:rank].sqrt()
    return Factors(q_up @ (u[:, :rank] * root), (root[:, None] * vh[:rank]) @ q_down.T), s


def factorised(difference: Tensor, rank: int = 0) -> tuple[Factors, Tensor]:
    """A dense difference (m, n) as factors, and all its singular values, descending.

    Args:
        rank: highest rank of the factors; 0 = the numerical rank, without loss.
    """
    u, s, vh = svd(difference)
    numerical = int((s > s[0] * max(difference.shape) * torch.finfo(s.dtype).eps).sum())
    kept = max(1, min(rank or numerical, numerical))
    root = s[:kept].sqrt()
    return Factors(u[:, :kept] * root, root[:, None] * vh[:kept]), s
