"""Gradients of a small twin's adapters, for tests that compare one way of holding the base model with another."""

from __future__ import annotations

from typing import Any

import torch
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import attached, make_adapters
from lora_kiln.training.config import LoRAConfig

import models
from targets import find_targets

FAMILIES = {
    "sd15": (models.sd15, 3.0), "sdxl": (models.sdxl, 3.0), "flux": (models.flux, 0.6), "sd3": (models.sd3, 0.6),
}  # fmt: skip


def conditioning(small: models.Small) -> list[Any]:
    """What the model is told, of random numbers for transformers, of its text encoders for UNets."""
    is_unet = hasattr(small.model.model.diffusion_model, "input_blocks")
    return host.encode_text(small.clip, "a cat") if is_unet else models.random_conditioning(small.model, 3)


class Probe:
    """A twin with adapters that all matter, and a fixed batch of two."""

    def __init__(self, small: models.Small, sigma: float, twin: Any, kind: str = "lora", targets: str = ""):
        self.sigma = sigma
        self.twin = twin
        targets = targets or "all linear and convolution"
        config = LoRAConfig.of(rank=2, alpha=2.0, seed=1, adapter=kind, targets=targets)
        self.found = find_targets(twin, config.adapter.targets)
        self.adapters = make_adapters(self.found, config.adapter, config.run.seed)
        for number, adapter in enumerate(self.adapters.values()):
            adapter.to(host.training_device(small.model))
            generator = torch.Generator().manual_seed(number)
            for parameter in adapter.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device)
        self.parameters = [parameter for adapter in self.adapters.values() for parameter in adapter.parameters()]
        self.options = host.transformer_options(small.model)
        device = host.training_device(small.model)
        self.x_t = models.random_latents(small.model, 2, seed=1).to(device)
        self.mix = models.random_latents(small.model, 2, seed=2).to(device)
        self.groups = host.batch_conds(twin, [conditioning(small)] * 2, self.x_t)

    def value(self) -> torch.Tensor:
        """A linear function of the denoised picture, adapters on."""
        sigma = torch.tensor([self.sigma, 0.9 * self.sigma], device=self.x_t.device)
        with attached(self.found, self.adapters, host.PRODUCTS):
            return (host.predict(self.twin, self.options, self.x_t, sigma, self.groups) * self.mix).sum()

    def gradients(self) -> list[torch.Tensor]:
        """Of all the adapters' parameters."""
        sigma = torch.tensor([self.sigma, 0.9 * self.sigma], device=self.x_t.device)
        for parameter in self.parameters:
            parameter.grad = None
        with attached(self.found, self.adapters, host.PRODUCTS):
            (host.predict(self.twin, self.options, self.x_t, sigma, self.groups) * self.mix).sum().backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters]


def all_equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    """To the last bit."""
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Norm of the difference against the norm, over all tensors together."""
    ours_all, theirs_all = (torch.cat([each.flatten().double() for each in side]) for side in (ours, theirs))
    return ((ours_all - theirs_all).norm() / theirs_all.norm()).item()
