"""Pictures to latents and back: by the graph's VAE, and in the scale that the MODEL was trained on."""

from typing import Any

import torch

from .modes import sampling_mode
from .tensors import normal_cpu_copy


def encode_pixels(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Latents (B, C, ...) of pictures, in the VAE's own scale, as normal CPU tensors.

    Args:
        pixels: (B, H, W, 3) in [0, 1].
    """
    takes_batch_for_video = getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False)
    with sampling_mode():
        if takes_batch_for_video:
            return torch.cat([normal_cpu_copy(vae.encode(picture)) for picture in pixels.split(1)])
        return normal_cpu_copy(vae.encode(pixels))


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pictures (B, H, W, 3) in [0, 1] from latents in the VAE's own scale."""
    with sampling_mode():
        images = vae.decode(latents)
        return normal_cpu_copy(images.flatten(0, 1).clamp(0, 1) if images.dim() == 5 else images.clamp(0, 1))


def to_model_space(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """VAE latents scaled and shifted as the MODEL was trained on them."""
    return model.get_model_object("latent_format").process_in(latents)


def from_model_space(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_model_space`."""
    return model.get_model_object("latent_format").process_out(latents)


def latent_scale(vae: Any) -> int:
    """Pixels per latent cell along a side."""
    return int(vae.spacial_compression_encode())


def latent_shape(model: Any, vae: Any, width: int, height: int) -> tuple[int, ...]:
    """The shape (C, ...) of one picture's latent; width and height in pixels."""
    latent_format = model.get_model_object("latent_format")
    scale = latent_scale(vae)
    frames = (1,) if latent_format.latent_dimensions == 3 else ()
    return (latent_format.latent_channels, *frames, height // scale, width // scale)
