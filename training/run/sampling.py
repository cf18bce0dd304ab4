"""Sample pictures, drawn with the adapters during training."""

from typing import Any

import torch

from .. import host
from ..basics.randomness import seed_generators, tensor_generator
from ..config import LoRAConfig
from ..learning.objective import Predict


class Sampler:
    """Draws square pictures with the model in training.

    Args:
        model, vae: the graph's MODEL and VAE.
        side: of the pictures, in pixels.
        device: where the model computes.
    """

    def __init__(self, model: Any, vae: Any, config: LoRAConfig, side: int, device: torch.device):
        self.model, self.vae, self.config, self.side, self.device = model, vae, config, side, device

    def draw(self, twin: Any, predict: Predict, prompt: Any, empty: Any, number: int) -> torch.Tensor:
        """Draws a picture: (H, W, 3) in [0, 1]. Its noise is a function of the seed and `number`.

        Args:
            twin: of MODEL, with which `predict` computes.
            prompt, empty: CONDITIONING of the prompt and of the empty prompt.
            number: of the prompt.
        """
        config = self.config
        shape = (1, *host.latent_shape(self.model, self.vae, self.side, self.side))
        noise = torch.randn(shape, generator=tensor_generator(config.run.seed, number, "sample")).to(self.device)
        sigmas = host.sampler_sigmas(twin, config.run.sample_steps)
        # Distilled guidance is an input of the model; without it, guidance takes a second pass with the empty prompt.
        distilled = host.takes_guidance(self.model)
        guidance, cfg = (config.run.sample_guidance, 1.0) if distilled else (None, config.run.sample_guidance)
        cond = host.batch_conds(twin, [prompt], noise, guidance)
        uncond = host.batch_conds(twin, [empty], noise, guidance, host.NEGATIVE)
        start = host.start_noise(twin, sigmas[0], noise)
        seed_generators(config.run.seed, number, "sample", "model")
        latent = euler(predict, start, sigmas, cond, uncond, cfg)
        return host.decode_latents(self.vae, host.from_model_space(self.model, latent))[0]


def euler(
    predict: Predict, x: torch.Tensor, sigmas: torch.Tensor, cond: Any, uncond: Any, guidance: float
) -> torch.Tensor:
    """x_0 from x_T by Euler steps (Karras et al., arXiv:2206.00364, algorithm 1 without noise).

    Args:
        x: (1, C, ...) noise at sigmas[0].
        sigmas: (steps + 1,) falling, the last 0.
        guidance: classifier-free guidance (Ho and Salimans, arXiv:2207.12598); at 1 uncond is not used.
    """
    for sigma, next_sigma in zip(sigmas[:-1], sigmas[1:], strict=True):
        level = sigma.to(x).expand(x.shape[0])
        x_0 = predict(x, level, cond)
        if guidance != 1.0:
            without = predict(x, level, uncond)
            x_0 = without + guidance * (x_0 - without)
        x = x_0 if next_sigma == 0 else x + (x - x_0) / sigma * (next_sigma - sigma)
    return x
