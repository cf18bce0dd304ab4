"""The trainers that `bench quality` compares, each on the same pictures by the same recipe, with files on the way.

ours              the demo's workflow: all linear layers and convolutions, regularisation pictures
ours-plain        the same without regularisation pictures, as the core trains
ours-bf16         as ours, in bf16
ours-fp8-matmul   as ours-bf16, with the base model's linear layers in 8 bit and multiplied so
ours-attention    as ours-plain on attn.to_{q,k,v,out} alone, as diffusers' scripts train
core              ComfyUI's own Train LoRA node
core-bypass       the same in its bypass mode
diffusers         diffusers + peft, the loop of diffusers' train_text_to_image_lora.py

What cannot be made equal: the core has no alpha (it starts at 1, so the scale is 1 / rank, and it trains it), no
scheduler and no clipping, and trains every layer, norm and bias; diffusers' script has no regularisation pictures.
"""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from client import Client
from host import Server, has_cuda, link
from kit.concepts import Concept, write_base_pictures
from kit.demo import BASE_PICTURES, CHECKPOINT, FOLDER, demo_prompt, node, node_id
from kit.nets import LATENT_SCALE, UNET

PREFIX = "bench-"  # of every LoRA file written here
PROJECTIONS = ("to_k", "to_q", "to_v", "to_out.0")  # what diffusers' scripts train


@dataclass(frozen=True)
class Recipe:
    """What is the same for all. The fields that the demo's workflow has are the demo's."""

    steps: int
    every: int
    """steps between the LoRAs that are judged"""
    batch_size: int
    rank: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    seed: int


def demo_recipe(client: Client, steps: int | None, every: int) -> Recipe:
    """The recipe of the demo's workflow, maybe of another length."""
    inputs = node(demo_prompt(client, Concept(1)), "KilnLoRAConfig")["inputs"]
    fields = ("batch_size", "rank", "learning_rate", "weight_decay", "max_grad_norm", "seed")
    return Recipe(steps=steps or inputs["steps"], every=every, **{name: inputs[name] for name in fields})


@dataclass(frozen=True)
class Bench:
    """A running server and what the trainers need beside it."""

    server: Server
    client: Client
    host_dir: Path
    kit: Path
    recipe: Recipe

    @property
    def data(self) -> Path:
        return self.server.workspace / "input" / FOLDER


def lay_out(workspace: Path) -> None:
    """Puts the bench's nodes in place, before the server starts, and takes away what an earlier run left."""
    (workspace / "custom_nodes").mkdir(parents=True, exist_ok=True)
    link(Path(__file__).with_name("bench_nodes.py"), workspace / "custom_nodes" / "kit_bench_nodes.py")
    for folder in ("models/loras", "output/loras"):
        for path in (workspace / folder).glob(f"{PREFIX}*"):
            path.unlink()


def write_data(bench: Bench, concept: Concept, pictures: int) -> None:
    """The concept's pictures, each with its caption, and base pictures for regularisation."""
    shutil.rmtree(bench.data, ignore_errors=True)
    concept.write_dataset(bench.data / "pictures", count=pictures)
    write_base_pictures(bench.data / "base", concept.seed, BASE_PICTURES)


Files = dict[int, str]
"""Steps -> the LoRA's name in the Load LoRA list."""


# ---------------------------------------------------------------- ours


def train_ours(
    bench: Bench,
    concept: Concept,
    peer: str,
    *,
    regularisation: bool = True,
    attention: bool = False,
    **config: Any,
) -> Files:
    """The demo's workflow, up to the saved file; `config` = further inputs of LoRA Config."""
    recipe, name = bench.recipe, _name(peer, concept)
    config |= {"steps": recipe.steps, "save_every": recipe.every}
    prompt = demo_prompt(bench.client, concept, config)
    node(prompt, "KilnTrainLoRA")["inputs"]["name"] = name
    node(prompt, "KilnSaveLoRA")["inputs"]["filename"] = _file(name, recipe.steps)
    if not regularisation:
        node(prompt, "KilnLoadDataset")["inputs"]["regularisation_folder"] = "none"
    if attention:
        only_projections(prompt)
    bench.client.run(needed(prompt, node_id(prompt, "KilnSaveLoRA")))
    steps = [*range(recipe.every, recipe.steps, recipe.every), recipe.steps]
    return {step: f"{_file(name, step)}.safetensors" for step in steps}


def only_projections(prompt: dict[str, Any]) -> None:
    """Leaves of the attention layers those that diffusers' scripts train."""
    config = node_id(prompt, "KilnLoRAConfig")
    prompt[config]["inputs"]["targets"] = "attention"
    prompt["options"] = _node("KilnAdapterOptions", config=[config, 0], layer_rules="*proj_in rank=0\n*proj_out rank=0")
    node(prompt, "KilnTrainLoRA")["inputs"]["config"] = ["options", 0]


def needed(prompt: Mapping[str, Any], target: str) -> dict[str, Any]:
    """The part of a prompt that a node needs."""
    waiting, found = [target], {}
    while waiting:
        key = waiting.pop()
        found[key] = prompt[key]
        waiting += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    return found


# ---------------------------------------------------------------- the core


def train_core(bench: Bench, concept: Concept, *, bypass: bool = False, learning_rate: float | None = None) -> Files:
    """The core's dataset nodes, Train LoRA and Save LoRA Weights, with its own defaults but for the recipe."""
    recipe, name = bench.recipe, _name("core-bypass" if bypass else "core", concept)
    precise = {"training_dtype": "bf16" if has_cuda() else "fp32", "lora_dtype": "fp32"}  # as the others train
    prompt = {
        "c": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "w": _node("KitWatchOptimizer", model=["c", 0], every=recipe.every, run=name),
        "f": _node("LoadImageTextDataSetFromFolder", folder=f"{FOLDER}/pictures"),
        "d": _node("MakeTrainingDataset", images=["f", 0], texts=["f", 1], clip=["c", 1], vae=["c", 2]),
        "t": _node(
            "TrainLoraNode", model=["w", 0], latents=["d", 0], positive=["d", 1], batch_size=recipe.batch_size,
            grad_accumulation_steps=1, steps=recipe.steps, learning_rate=learning_rate or recipe.learning_rate,
            rank=recipe.rank, optimizer="AdamW", loss_function="MSE", seed=recipe.seed, **precise,
            quantized_backward=False, algorithm="LoRA", gradient_checkpointing=False, checkpoint_depth=1,
            offloading=False, existing_lora="[None]", bucket_mode=False, bypass_mode=bypass,
        ),
        "s": _node("KitSnapshots", lora=["t", 0]),
        "o": _node("SaveLoRA", lora=["s", 0], steps=["s", 1], prefix=f"loras/{name}"),
    }  # fmt: skip
    bench.client.run(prompt)
    folder = bench.server.workspace / "output" / "loras"
    steps = range(recipe.every, recipe.steps + 1, recipe.every)
    return {step: next(folder.glob(f"{name}_{step}_steps_*.safetensors")).name for step in steps}


# ---------------------------------------------------------------- diffusers + peft


@dataclass(frozen=True)
class Encoded:
    """The pictures and captions as the UNet takes them."""

    latents: Tensor
    """(N, 4, h, w) in model space"""
    text: Tensor
    """(N, 77, 768)"""


def train_diffusers(bench: Bench, concept: Concept) -> Files:
    """The loop of diffusers' train_text_to_image_lora.py: eps MSE, AdamW, cosine, bf16 autocast on a GPU."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from peft import LoraConfig

    recipe, name = bench.recipe, _name("diffusers", concept)
    device = torch.device("cuda" if has_cuda() else "cpu")
    encoded = encode(bench)
    unet = copy.deepcopy(diffusers_unet(bench)).to(device).requires_grad_(False)
    torch.manual_seed(recipe.seed)
    unet.add_adapter(
        LoraConfig(
            r=recipe.rank, lora_alpha=recipe.rank, init_lora_weights="gaussian", target_modules=list(PROJECTIONS)
        )
    )
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=recipe.steps)
    noising = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    latents, text = encoded.latents.to(device), encoded.text.to(device)
    files, order = {}, Random(f"order {recipe.seed}")
    batches = _batches(len(latents), recipe.batch_size, order)
    unet.train()
    for step in range(1, recipe.steps + 1):
        index = torch.tensor(next(batches), device=device)
        x_0 = latents[index]
        noise = torch.randn_like(x_0)
        times = torch.randint(0, noising.config["num_train_timesteps"], (len(index),), device=device)
        x_t = noising.add_noise(x_0, noise, times)  # pyright: ignore[reportArgumentType]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            predicted = unet(x_t, times, text[index], return_dict=False)[0]
        F.mse_loss(predicted.float(), noise).backward()
        nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % recipe.every == 0 or step == recipe.steps:
            files[step] = f"{_file(name, step)}.safetensors"
            save_file(kohya_tensors(unet), bench.server.workspace / "models" / "loras" / files[step])
    return files


def _batches(count: int, batch_size: int, random: Random):
    """Indices of shuffled epochs, as a data loader gives them."""
    while True:
        indices = list(range(count))
        random.shuffle(indices)
        yield from (indices[start : start + batch_size] for start in range(0, count, batch_size))


def kohya_tensors(unet: nn.Module) -> dict[str, Tensor]:
    """peft's factors under the names that the core's Load LoRA knows for SD1.5, fp16 as ours are saved."""
    from peft import get_peft_model_state_dict

    tensors = {}
    for key, tensor in get_peft_model_state_dict(unet).items():
        path, factor = key.removesuffix(".weight").rsplit(".", 1)
        suffix = {"lora_A": "lora_down", "lora_B": "lora_up"}[factor]
        tensors[f"lora_unet_{path.replace('.', '_')}.{suffix}.weight"] = tensor.detach().half().cpu().contiguous()
    return tensors


_unet: Any = None


def diffusers_unet(bench: Bench) -> Any:
    """The kit's UNet as diffusers' class, its weights moved by the host's key map; made once."""
    global _unet
    if _unet is None:
        comfy = _host(bench)
        stored = load_file(bench.kit / "checkpoints" / CHECKPOINT)
        _unet = convert_unet(stored, comfy.utils.unet_to_diffusers(UNET))
    return _unet


def convert_unet(stored: Mapping[str, Tensor], names: Mapping[str, str]) -> nn.Module:
    """A diffusers UNet, float32, from a checkpoint.

    Args:
        stored: the checkpoint's tensors.
        names: diffusers' key -> the original key, for every key that diffusers could have.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(UNET["model_channels"],),
        layers_per_block=UNET["num_res_blocks"][0], down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=UNET["context_dim"],
        attention_head_dim=UNET["num_heads"],
    )  # fmt: skip
    unet.load_state_dict({key: stored[f"model.diffusion_model.{names[key]}"].float() for key in unet.state_dict()})
    return unet


_encoders: tuple[Any, Any] | None = None


def encode(bench: Bench) -> Encoded:
    """The training pictures by the host's own VAE and text encoder, as the nodes in the server encode them."""
    global _encoders
    comfy = _host(bench)
    with torch.inference_mode():
        if _encoders is None:
            path = str(bench.kit / "checkpoints" / CHECKPOINT)
            _, *loaded = comfy.sd.load_checkpoint_guess_config(path, output_model=False)[:3]
            _encoders = loaded[0], loaded[1]
        clip, vae = _encoders
        files = sorted((bench.data / "pictures").glob("*.png"))
        pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(f).convert("RGB")) / 255).float() for f in files])
        texts = [f.with_suffix(".txt").read_text("utf-8").strip() for f in files]
        latents = vae.encode(pixels) * LATENT_SCALE
        text = torch.cat([clip.encode_from_tokens(clip.tokenize(t)) for t in texts])
    return Encoded(latents.float().cpu().clone(), text.float().cpu().clone())


def _host(bench: Bench) -> Any:
    """The host's own package, in this process; set as the server is, unless it is here already."""
    if "comfy.sd" not in sys.modules:
        sys.path.insert(0, str(bench.host_dir))
        from comfy.cli_args import args

        args.cpu = args.fp32_text_enc = not has_cuda()
    import comfy.sd
    import comfy.utils

    return comfy


# ---------------------------------------------------------------- the list


PEERS: dict[str, Callable[[Bench, Concept], Files]] = {
    "ours": partial(train_ours, peer="ours"),
    "ours-plain": partial(train_ours, peer="ours-plain", regularisation=False),
    "ours-bf16": partial(train_ours, peer="ours-bf16", precision="bf16"),
    "ours-fp8-matmul": partial(train_ours, peer="ours-fp8-matmul", precision="bf16", base_precision="fp8 matmul"),
    "ours-attention": partial(train_ours, peer="ours-attention", regularisation=False, attention=True),
    "core": train_core,
    "core-bypass": lambda bench, concept: train_core(bench, concept, bypass=True),
    "diffusers": train_diffusers,
}


def versions(bench: Bench) -> dict[str, str]:
    """Of everything that takes part."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"ComfyUI": bench.client.get("/system_stats")["system"]["comfyui_version"]}
    for package in ("torch", "diffusers", "peft", "transformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _name(peer: str, concept: Concept) -> str:
    return f"{PREFIX}{peer}-{concept.seed}"


def _file(name: str, step: int) -> str:
    return f"{name}-step{step:06}"


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
