"""A plain sampler for the pictures a run shows on the way."""

from typing import Any

import torch

from .objective import Predict


def euler(
    predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, cond: Any, uncond: Any, guidance: float
) -> torch.Tensor:
    """x_0 from x_T by Euler steps (Karras et al., arXiv:2206.00364, algorithm 1 without noise).

    Args:
        x: (1, C, ...) noise at sigmas[0].
        sigmas: (steps + 1,) falling, the last 0.
        guidance: classifier-free guidance (Ho and Salimans, arXiv:2207.12598); at 1 uncond is not asked.
    """
    for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:], strict=True):
        level = sigma.to(x).expand(x.shape[0])
        x_0 = predict(x, level, cond)
        if guidance != 1.0:
            without = predict(x, level, uncond)
            x_0 = without + guidance * (x_0 - without)
        x = x_0 if next_sigma == 0 else x + (x - x_0) / sigma * (next_sigma - sigma)
    return x
