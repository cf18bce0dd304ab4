"""Our loss, gradients and steps against diffusers and peft: the same UNet, LoRA, noise and text on both sides.

Their side is written as diffusers' training scripts have it: DDPMScheduler's noising, the UNet's own prediction, its
mean squared error to noise or velocity, peft's LoRA layers, torch's AdamW.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.utils
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import attached, find_targets, make_adapters
from lora_kiln.training.adapters.flat import FlatParameters
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.engine import EagerEngine
from lora_kiln.training.learning.loop import train
from lora_kiln.training.learning.objective import batch_loss, sample_losses
from lora_kiln.training.learning.optimizers import make_optimizer
from lora_kiln.training.learning.step import Step
from peft import LoraConfig, inject_adapter_in_model

import models
from parity import distance

CONFIG = LoRAConfig.of(
    rank=4, alpha=2.0, targets="attention and feed-forward", learning_rate=1e-3, scheduler="constant", steps=50,
    weight_decay=0.01, max_grad_norm=1.0, precision="fp32", seed=3,
)  # fmt: skip
SIZE = 64  # of the pictures whose sizes SDXL is told
BLOCKS = dict(
    block_out_channels=(models.WIDTH, 2 * models.WIDTH),
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
    layers_per_block=1,
)
SDXL = dict(
    cross_attention_dim=2 * models.WIDTH,
    attention_head_dim=(2, 4),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=models.WIDTH + 6 * 256,
)
FAMILIES = {
    "sd15": (models.sd15, dict(cross_attention_dim=models.WIDTH, attention_head_dim=4), "epsilon"),
    "sdxl": (models.sdxl, SDXL, "epsilon"),
    "sdxl v": (lambda: models.v_prediction(models.sdxl()), SDXL, "v_prediction"),
}


@dataclass
class Draw:
    """One batch, before anyone's conventions."""

    x_0: torch.Tensor
    noise: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor
    pooled: torch.Tensor
    sizes: list[dict[str, int]]


def draw(small: models.Small, batch: int, seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    width = small.model.model.model_config.unet_config["context_dim"]
    corners = torch.randint(0, SIZE, (batch, 4), generator=generator).tolist()
    return Draw(
        x_0=torch.randn(batch, 4, 8, 8, generator=generator),
        noise=torch.randn(batch, 4, 8, 8, generator=generator),
        timestep=torch.randint(0, 1000, (batch,), generator=generator),
        text=torch.randn(batch, 77, width, generator=generator),
        pooled=torch.randn(batch, models.WIDTH, generator=generator),
        sizes=[
            dict(height=SIZE + h, width=SIZE + w, crop_h=y, crop_w=x, target_height=SIZE, target_width=SIZE + 8)
            for h, w, y, x in corners
        ],
    )


class Ours:
    """The pack's side: a twin of the host's model with adapters."""

    def __init__(self, small: models.Small, dtype: torch.dtype):
        self.prediction = host.family(small.model).prediction
        self.options = host.transformer_options(small.model)
        self.twin = host.trainable_twin(small.model, dtype)
        self.found = find_targets(self.twin, CONFIG.adapter.targets)
        self.adapters: dict[str, Any] = make_adapters(self.found, CONFIG.adapter, CONFIG.run.seed)
        for number, adapter in enumerate(self.adapters.values()):  # so that down gets a gradient too
            adapter.up.data = 0.02 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(number))

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, cond: Any) -> torch.Tensor:
        return host.predict(self.twin, self.options, x_t, sigma, cond)

    def batch(self, drawn: Draw) -> Batch:
        conditionings = [
            [[drawn.text[row : row + 1], {"pooled_output": drawn.pooled[row : row + 1], **size}]]
            for row, size in enumerate(drawn.sizes)
        ]
        sigma = self.prediction.sigmas[drawn.timestep]
        cond = host.batch_conds(self.twin, conditionings, drawn.x_0)
        return Batch(drawn.x_0, drawn.noise, sigma, torch.ones(len(sigma)), cond, None, None)

    def loss(self, drawn: Draw) -> torch.Tensor:
        batch = self.batch(drawn)
        with attached(self.found, self.adapters, host.PRODUCTS):
            loss = sample_losses(self.predict, self.prediction, CONFIG.objective, batch).mean()
            loss.backward()
        return loss.detach()

    def factors(self) -> dict[str, torch.nn.Parameter]:
        return {
            f"{key}.{factor}": parameter
            for key, adapter in self.adapters.items()
            for factor, parameter in (("down", adapter.down), ("up", adapter.up))
        }


class Theirs:
    """diffusers' UNet with the same weights, and peft's LoRA with the same factors."""

    def __init__(self, small: models.Small, options: dict[str, Any], prediction: str, adapters: dict[str, Any]):
        base = small.model.model
        self.unet: Any = UNet2DConditionModel(sample_size=8, **BLOCKS, **options)
        names = comfy.utils.unet_to_diffusers(base.model_config.unet_config)
        weights = base.diffusion_model.state_dict()
        self.unet.load_state_dict({theirs: weights[names[theirs]].clone() for theirs in self.unet.state_dict()})
        self.unet.requires_grad_(False)
        paths = {f"diffusion_model.{ours}": theirs.removesuffix(".weight") for theirs, ours in names.items()}
        self.paths = {key: paths[key] for key in adapters}
        lora = LoraConfig(
            r=CONFIG.adapter.rank, lora_alpha=int(CONFIG.adapter.alpha), target_modules=list(self.paths.values())
        )
        inject_adapter_in_model(lora, self.unet)
        for name, parameter in self.factors().items():
            key, _, factor = name.rpartition(".")
            parameter.data.copy_(getattr(adapters[key], factor).data)
        self.scheduler: Any = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
        )
        table = 1.0 / (1.0 + host.family(small.model).prediction.sigmas.square())
        assert torch.allclose(self.scheduler.alphas_cumprod, table, rtol=1e-4)
        self.scheduler.alphas_cumprod = table  # to the last bit, or the noise levels' own rounding would show
        self.is_sdxl = "addition_embed_type" in options

    def loss(self, drawn: Draw, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        noisy = self.scheduler.add_noise(drawn.x_0, drawn.noise, drawn.timestep)
        order = ("height", "width", "crop_h", "crop_w", "target_height", "target_width")
        time_ids = torch.tensor([[float(size[name]) for name in order] for size in drawn.sizes])
        added = {"text_embeds": drawn.pooled, "time_ids": time_ids} if self.is_sdxl else None
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            predicted = self.unet(noisy, drawn.timestep, drawn.text, added_cond_kwargs=added).sample
        target = drawn.noise
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(drawn.x_0, drawn.noise, drawn.timestep)
        loss = F.mse_loss(predicted.float(), target.float())
        loss.backward()
        return loss.detach()

    def factors(self) -> dict[str, torch.nn.Parameter]:
        layers = {key: self.unet.get_submodule(path) for key, path in self.paths.items()}
        return {
            f"{key}.{factor}": getattr(layer, side)["default"].weight
            for key, layer in layers.items()
            for factor, side in (("down", "lora_A"), ("up", "lora_B"))
        }


def both(name: str) -> tuple[models.Small, Ours, Theirs]:
    make, options, prediction = FAMILIES[name]
    small = make()
    ours = Ours(small, torch.float32)
    return small, ours, Theirs(small, options, prediction, ours.adapters)


def gradients(side: Ours | Theirs) -> dict[str, torch.Tensor]:
    """And forgets them."""
    found = {}
    for name, parameter in side.factors().items():
        assert parameter.grad is not None, name
        found[name], parameter.grad = parameter.grad, None
    return found


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_theirs(name, batch):
    with host.training_mode():
        small, ours, theirs = both(name)
        for seed in range(4):
            drawn = draw(small, batch, seed)
            assert ours.loss(drawn).item() == pytest.approx(theirs.loss(drawn).item(), rel=1e-5)
            our_gradients, their_gradients = gradients(ours), gradients(theirs)
            for key, gradient in their_gradients.items():
                assert distance({key: our_gradients[key]}, {key: gradient}) < 1e-4, key


@pytest.mark.parametrize("name", ["sd15", "sdxl v"])
def test_fifty_steps_end_where_theirs_do(name):
    with host.training_mode():
        small, ours, theirs = both(name)
        start = {key: parameter.detach().clone() for key, parameter in ours.factors().items()}
        draws = [draw(small, 1, seed) for seed in range(CONFIG.optimization.steps)]

        parameters = list(theirs.factors().values())
        optimizer = torch.optim.AdamW(
            parameters, lr=CONFIG.optimization.learning_rate, weight_decay=CONFIG.optimization.weight_decay
        )
        their_losses = []
        for drawn in draws:
            their_losses.append(theirs.loss(drawn).item())
            torch.nn.utils.clip_grad_norm_(parameters, CONFIG.optimization.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

        our_losses: list[float] = []
        flat = FlatParameters(ours.adapters.values(), torch.device("cpu"), torch.float32)
        own = make_optimizer(
            CONFIG.optimization, [{"params": [flat.values], "learning_rate": CONFIG.optimization.learning_rate}]
        )
        engine = EagerEngine(
            Step(
                partial(batch_loss, ours.predict, ours.prediction, CONFIG.objective),
                own,
                CONFIG.optimization,
                flats=[flat],
            )
        )
        with attached(ours.found, ours.adapters, host.PRODUCTS):
            train(
                engine, lambda step, micro: ours.batch(draws[step]), CONFIG.optimization, CONFIG.optimization.steps,
                lambda step, loss, learning_rate: our_losses.append(loss),
            )  # fmt: skip
    assert our_losses == pytest.approx(their_losses, rel=1e-4)
    assert distance(ours.factors(), theirs.factors()) < 1e-3
    assert distance(ours.factors(), start) > 0.1  # they have moved


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_bf16_costs_no_more_than_their_autocast_does(name):
    """Both against their own float32, over many draws; adapters are float32 on both sides."""
    with host.training_mode():
        small, ours, theirs = both(name)
        narrow = Ours(small, torch.bfloat16)
        sums: dict[str, dict[str, torch.Tensor]] = {}
        for seed in range(8):
            drawn = draw(small, 2, seed)
            for side, loss in (
                ("ours", ours.loss),
                ("theirs", theirs.loss),
                ("narrow", narrow.loss),
                ("autocast", lambda drawn: theirs.loss(drawn, torch.bfloat16)),
            ):
                loss(drawn)
                for key, gradient in gradients({"ours": ours, "narrow": narrow}.get(side, theirs)).items():
                    sums.setdefault(side, {})[f"{seed} {key}"] = gradient
    assert distance(sums["narrow"], sums["ours"]) < 1.5 * distance(sums["autocast"], sums["theirs"])
