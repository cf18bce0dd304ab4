"""A plain sampler for the kit's UNet: SD's discrete schedule, DDIM (Song et al. 2021), classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

STEPS = 1000


def alphas(device: torch.device | str = "cpu") -> Tensor:
    """The cumulative products of SD's schedule, (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float().to(device)


@torch.no_grad()
def sample(
    unet: nn.Module,
    context: Tensor,
    empty: Tensor,
    seed: int = 0,
    guidance: float = 4.0,
    steps: int = 30,
    side: int = 16,
) -> Tensor:
    """Latents (B, 4, side, side) for contexts (B, 77, 768); `empty` (1, 77, 768) is the empty caption's."""
    count, device = len(context), context.device
    x = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(seed)).to(device)
    both = torch.cat([context, empty.expand_as(context)])
    table = alphas(device)
    times = torch.linspace(STEPS - 1, 0, steps + 1).round().long()[:-1].tolist()
    for t, after in zip(times, [*times[1:], None], strict=True):
        a, b = table[t], table[after] if after is not None else torch.ones((), device=device)
        time = torch.full((2 * count,), t, device=device)
        eps, plain = unet(torch.cat([x, x]), time, context=both, transformer_options={}).float().chunk(2)
        eps = plain + guidance * (eps - plain)
        x = (x - (1 - a).sqrt() * eps) / a.sqrt() * b.sqrt() + (1 - b).sqrt() * eps
    return x


@torch.no_grad()
def decode(vae: nn.Module, latents: Tensor, scale: float = 0.18215) -> Tensor:
    """Latents in model space to pictures (B, H, W, 3) in 0 to 1, as the host does it."""
    picture: Callable[[Tensor], Tensor] = vae.decode
    return (picture(latents / scale) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
