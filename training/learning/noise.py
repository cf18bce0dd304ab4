"""The noise that training samples are mixed with."""

import torch
import torch.nn.functional as F


def draw_noise(shape: tuple[int, ...], noise_offset: float, generator: torch.Generator) -> torch.Tensor:
    """Gaussian noise for one sample (C, ...), each channel shifted by noise_offset * N(0, 1).

    The offset is Nicholas Guttenberg's "Diffusion with offset noise" (crosslabs.org, 2023).
    """
    noise = torch.randn(shape, generator=generator)
    if noise_offset:
        channels = (shape[0],) + (1,) * (len(shape) - 1)
        noise = noise + noise_offset * torch.randn(channels, generator=generator)
    return noise


def multires_noise(noise: torch.Tensor, iterations: int, discount: float, generator: torch.Generator) -> torch.Tensor:
    """Pyramid noise: the sum of noise and discount^i times gaussian noise at 1 / r^i the size, at unit deviation.

    i runs from 0 to iterations - 1 and ends before a side would be shorter than 1; r is drawn from [2, 4) for each
    layer, and a layer is enlarged bilinearly. Jonathan Whitaker, "Multi-Resolution Noise for Diffusion Model
    Training" (wandb.ai, 2023), with kohya's count of layers.

    Args:
        noise: of one sample, (C, h, w) or (C, f, h, w); each frame has its own layers.
    """
    height, width = noise.shape[-2:]
    total = noise.reshape(1, -1, height, width)
    for i in range(iterations):
        ratio = (2.0 + 2.0 * torch.rand((), generator=generator).item()) ** i
        size = int(height / ratio), int(width / ratio)
        if min(size) < 1:
            break
        layer = torch.randn(1, total.shape[1], *size, generator=generator)
        total = total + discount**i * F.interpolate(layer, (height, width), mode="bilinear")
    return (total / total.std()).reshape(noise.shape)
