"""Our loss and gradients of flow models against diffusers and peft: the same transformer, LoRA, noise and text.

diffusers keeps query, key and value in layers of their own where the host has one. A LoRA on the host's layer is three
of theirs with the same down and the rows of up shared out: up's gradients are theirs stacked, down's is their sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.utils
import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import attached, make_adapters
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.objective import sample_losses
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

import models
from parity import distance
from targets import find_targets

CONFIG = LoRAConfig.of(rank=4, alpha=2.0, targets="attention and feed-forward", precision="fp32", seed=3)
SIDE = 8  # of the latents
TOKENS = 9
GUIDANCE = 1.0


@dataclass
class Draw:
    """One batch, before anyone's conventions."""

    x_0: Tensor
    noise: Tensor
    sigma: Tensor
    text: Tensor
    pooled: Tensor

    @property
    def x_t(self) -> Tensor:
        sigma = self.sigma[:, None, None, None]
        return (1.0 - sigma) * self.x_0 + sigma * self.noise


def draw(batch: int, seed: int, text_width: int, pooled_width: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return Draw(
        x_0=torch.randn(batch, 16, SIDE, SIDE, generator=generator),
        noise=torch.randn(batch, 16, SIDE, SIDE, generator=generator),
        sigma=torch.rand(batch, generator=generator) * 0.98 + 0.01,
        text=torch.randn(batch, TOKENS, text_width, generator=generator),
        pooled=torch.randn(batch, pooled_width, generator=generator),
    )


class SD3:
    """diffusers' SD3 with the weights of the small one."""

    text_width, pooled_width = 4096, 2 * models.WIDTH

    def __init__(self):
        self.small = models.sd3()
        self.names = comfy.utils.mmdit_to_diffusers(self.small.model.model.model_config.unet_config)
        self.network: Any = SD3Transformer2DModel(
            sample_size=SIDE, num_layers=2, attention_head_dim=64, num_attention_heads=2, caption_projection_dim=128,
            joint_attention_dim=self.text_width, pooled_projection_dim=self.pooled_width, pos_embed_max_size=16,
            qk_norm="rms_norm",
        )  # fmt: skip

    def velocity(self, drawn: Draw) -> Tensor:
        return self.network(drawn.x_t, drawn.text, drawn.pooled, drawn.sigma * 1000.0).sample


class Flux:
    """diffusers' Flux with the weights of the small one."""

    text_width, pooled_width = models.WIDTH, models.WIDTH

    def __init__(self, guidance: bool = True):
        self.small = models.flux(guidance=guidance)
        self.names = comfy.utils.flux_to_diffusers(self.small.model.model.model_config.unet_config)
        self.network: Any = FluxTransformer2DModel(
            num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=2,
            joint_attention_dim=self.text_width, pooled_projection_dim=self.pooled_width, guidance_embeds=guidance,
            axes_dims_rope=(8, 12, 12),
        )  # fmt: skip

    def velocity(self, drawn: Draw) -> Tensor:
        half, batch = SIDE // 2, len(drawn.x_t)
        packed = drawn.x_t.reshape(batch, 16, half, 2, half, 2).permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 64)
        rows, columns = torch.meshgrid(torch.arange(half), torch.arange(half), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
        out = self.network(
            packed, drawn.text, drawn.pooled, drawn.sigma, places, torch.zeros(TOKENS, 3),
            guidance=torch.full((batch,), GUIDANCE) if self.network.config.guidance_embeds else None,
        ).sample  # fmt: skip
        return out.reshape(batch, half, half, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(drawn.x_t.shape)


FAMILIES = {"sd3": SD3, "flux": Flux, "schnell": lambda: Flux(guidance=False)}


def give_weights(theirs: SD3 | Flux) -> None:
    """The host's weights, cut and turned as its own map to diffusers' names says."""
    weights = theirs.small.model.model.diffusion_model.state_dict()
    converted = {}
    for name in theirs.network.state_dict():
        entry = theirs.names[name]
        key, cut, *change = (entry, None) if isinstance(entry, str) else entry
        weight = weights[key] if cut is None else weights[key].narrow(*cut)
        converted[name] = (change[0](weight) if change else weight).clone()
    theirs.network.load_state_dict(converted)
    theirs.network.requires_grad_(False)


def give_lora(theirs: SD3 | Flux, adapters: dict[str, Any]) -> dict[str, list[Any]]:
    """peft's layers for each of our adapters, in the order of its rows."""
    parts: dict[str, list[tuple[int, str]]] = {key: [] for key in adapters}
    for name in theirs.network.state_dict():
        entry = theirs.names[name]
        key, cut = (entry, None) if isinstance(entry, str) else entry[:2]
        if f"diffusion_model.{key}" in parts:
            parts[f"diffusion_model.{key}"].append((cut[1] if cut else 0, name.removesuffix(".weight")))
    paths = [path for pieces in parts.values() for _, path in pieces]
    inject_adapter_in_model(
        LoraConfig(r=CONFIG.adapter.rank, lora_alpha=int(CONFIG.adapter.alpha), target_modules=paths), theirs.network
    )
    layers = {key: [theirs.network.get_submodule(path) for _, path in sorted(pieces)] for key, pieces in parts.items()}
    for key, pieces in layers.items():
        rows = [piece.out_features for piece in pieces]
        for piece, up in zip(pieces, adapters[key].up.data.split(rows), strict=True):
            piece.lora_A["default"].weight.data.copy_(adapters[key].down.data)
            piece.lora_B["default"].weight.data.copy_(up)
    return layers


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_theirs(name, checkpointed, batch):
    theirs = FAMILIES[name]()
    model = theirs.small.model
    with host.training_mode():
        give_weights(theirs)
        twin = host.trainable_twin(model, torch.float32)
        if checkpointed:
            host.checkpoint_blocks(twin)
        found = find_targets(twin, CONFIG.adapter.targets)
        adapters: dict[str, Any] = make_adapters(found, CONFIG.adapter, CONFIG.run.seed)
        for number, adapter in enumerate(adapters.values()):  # so that down gets a gradient too
            adapter.up.data = 0.02 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(number))
        layers = give_lora(theirs, adapters)
        assert any(len(pieces) > 1 for pieces in layers.values())
        options, prediction = host.transformer_options(model), host.family(model).prediction

        for seed in range(3):
            drawn = draw(batch, seed, theirs.text_width, theirs.pooled_width)
            their_loss = F.mse_loss(theirs.velocity(drawn), drawn.noise - drawn.x_0)
            their_loss.backward()

            texts = [
                [[drawn.text[row : row + 1], {"pooled_output": drawn.pooled[row : row + 1]}]] for row in range(batch)
            ]
            cond = host.batch_conds(twin, texts, drawn.x_0, guidance=GUIDANCE)
            with attached(found, adapters, host.PRODUCTS):
                our_loss = sample_losses(
                    lambda x_t, sigma, cond: host.predict(twin, options, x_t, sigma, cond),
                    prediction,
                    CONFIG.objective,
                    Batch(drawn.x_0, drawn.noise, drawn.sigma, torch.ones(batch), cond),
                ).mean()
                our_loss.backward()

            assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
            for key, adapter in adapters.items():
                downs = [piece.lora_A["default"].weight for piece in layers[key]]
                ups = [piece.lora_B["default"].weight for piece in layers[key]]
                expected = {
                    "down": torch.stack([down.grad for down in downs]).sum(0),
                    "up": torch.cat([up.grad for up in ups]),
                }
                assert distance({"down": adapter.down.grad, "up": adapter.up.grad}, expected) < 1e-4, key
                for parameter in (adapter.down, adapter.up, *downs, *ups):
                    parameter.grad = None
