"""diffusers + peft in the form of the official scripts, as a child process that `bench speed` asks for timed runs.

The loop is that of train_text_to_image_lora.py, train_text_to_image_lora_sdxl.py and train_dreambooth_lora_flux.py with
mixed_precision bf16: base weights bf16, the forward pass under autocast, LoRA by `add_adapter` on to_q, to_k, to_v and
to_out.0, AdamW, gradients clipped, the loss read after each step. Left out, to its advantage: the VAE and the text
encoders, which those scripts run in every step. Captions of Flux have 256 tokens, as in ComfyUI.

`compile`: "" = eager; "model" = torch.compile of the whole network, as accelerate's dynamo does; "blocks" =
diffusers' compile_repeated_blocks.

A question is a line of JSON: {"model", "batch", "checkpointing", "compile", "steps", "skip", "repeats"}. The answer is
a line RESULT {"seconds_per_step": [...], "reserved", "allocated", "adapters"} or RESULT {"failed": why}.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.models import MODELS, Model
from bench.runs import OUT_OF_MEMORY, RESULT, failure
from host import has_cuda

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]
FLUX_TARGETS = [f"attn.{name}" for name in (*TARGETS, "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")]
RANK = 16


def new_network(model: Model, device: torch.device, dtype: torch.dtype) -> Any:
    """The network of a model in diffusers' class, with fresh weights, made where it is used."""
    from diffusers import FluxTransformer2DModel, UNet2DConditionModel

    settings: dict[str, Any] = {
        "kit": dict(
            block_out_channels=(320,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=768, attention_head_dim=8,
        ),
        "sd15": dict(cross_attention_dim=768, attention_head_dim=8),
        "sdxl": dict(
            block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        ),
        "flux": dict(guidance_embeds=True),
    }[model.name]  # fmt: skip
    kind = FluxTransformer2DModel if model.is_flux else UNet2DConditionModel
    if not model.is_flux:
        settings["sample_size"] = model.side // 8
    with torch.device(device), _default_dtype(dtype):
        return kind(**settings)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def batch_loss(
    network: Any, model: Model, noising: Any, batch: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The loss of one batch of random latents and captions, as the scripts compute it."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    side = model.side // 8
    autocast = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    if model.is_flux:
        packed = (side // 2) ** 2
        x_0, noise = randn(batch, packed, 64), randn(batch, packed, 64)
        sigma = torch.rand(batch, device=device)[:, None, None]
        x_t = ((1.0 - sigma) * x_0 + sigma * noise).to(dtype)
        with autocast:
            predicted = network(
                hidden_states=x_t, timestep=sigma.flatten(), guidance=torch.ones(batch, device=device),
                pooled_projections=randn(batch, 768), encoder_hidden_states=randn(batch, model.tokens, 4096),
                txt_ids=torch.zeros(model.tokens, 3, device=device), img_ids=torch.zeros(packed, 3, device=device),
                return_dict=False,
            )[0]  # fmt: skip
        return F.mse_loss(predicted.float(), (noise - x_0).float())
    x_0 = randn(batch, 4, side, side)
    noise = torch.randn_like(x_0)
    times = torch.randint(0, 1000, (batch,), device=device)
    x_t = noising.add_noise(x_0, noise, times)
    more = {}
    if model.name == "sdxl":
        sizes = torch.tensor([[side * 8, side * 8, 0, 0, side * 8, side * 8]] * batch, device=device)
        more["added_cond_kwargs"] = {"time_ids": sizes, "text_embeds": randn(batch, 1280)}
    text = randn(batch, model.tokens, model.network["context_dim"])
    with autocast:
        predicted = network(x_t, times, text, return_dict=False, **more)[0]
    return F.mse_loss(predicted.float(), noise.float())


def timed_run(question: dict[str, Any]) -> dict[str, Any]:
    """Trains as a question wants and gives the answer."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from peft import LoraConfig

    model = MODELS[question["model"]]
    device = torch.device("cuda" if has_cuda() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    # On an H100 with torch 2.11 cuDNN's attention, torch's first choice, reads out of bounds in this Flux.
    torch.backends.cuda.enable_cudnn_sdp(not model.is_flux)
    torch.manual_seed(0)
    network = new_network(model, device, dtype).requires_grad_(False)
    targets = FLUX_TARGETS if model.is_flux else TARGETS
    network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=targets))
    if question["checkpointing"]:
        network.enable_gradient_checkpointing()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-4)
    scheduler = get_scheduler("constant", optimizer)
    noising = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    network.train()
    called = network
    if question["compile"] == "model":
        called = torch.compile(network)
    elif question["compile"] == "blocks":
        network.compile_repeated_blocks()

    def step() -> None:
        loss = batch_loss(called, model, noising, question["batch"], device, dtype)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        loss.item()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(question["skip"]):
        step()
    found = []
    counted = max(1, question["steps"] - question["skip"])
    for _ in range(question["repeats"]):
        wait()
        started = time.perf_counter()
        for _ in range(counted):
            step()
        wait()
        found.append((time.perf_counter() - started) / counted)
    answer: dict[str, Any] = {"seconds_per_step": found, "adapters": str(parameters[0].dtype).removeprefix("torch.")}
    if device.type == "cuda":
        answer |= {"reserved": torch.cuda.max_memory_reserved(), "allocated": torch.cuda.max_memory_allocated()}
    return answer


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """`timed_run`, its failures as answers, and nothing left on the GPU."""
    try:
        return timed_run(question)
    except torch.OutOfMemoryError:
        return {"failed": OUT_OF_MEMORY}
    except Exception as error:  # whatever it is, the bench goes on
        return {"failed": failure(type(error).__name__, f"{type(error).__name__}: {error}")}
    finally:
        _clear()


def _clear() -> None:
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # it holds the compiled networks
    gc.collect()
    if has_cuda():
        torch.cuda.empty_cache()


def main() -> None:
    for line in sys.stdin:
        print(RESULT + json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
