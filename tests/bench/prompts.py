"""The workflows that the benches queue, in API form: our trainer's and the core's, on the same model and pictures."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.models import FILE, Model
from host import link

FOLDER = "kiln_bench"  # in ComfyUI's input folder
RANK = 16
CONFIG_NODES = ("KilnLoRAConfig", "KilnAdapterOptions", "KilnLossOptions", "KilnOptimizerOptions", "KilnRunOptions")
BLOCK_LEVEL = 2  # the core's checkpoint_depth for blocks; its default, 1, wraps the whole model and saves nothing

JSON = dict[str, Any]
Link = list[Any]


def lay_out(workspace: Path) -> None:
    """Puts the benches' nodes in place, before the server starts."""
    (workspace / "custom_nodes").mkdir(parents=True, exist_ok=True)
    link(Path(__file__).with_name("host_nodes.py"), workspace / "custom_nodes" / "kiln_bench_nodes.py")


def write_pictures(input_folder: Path, name: str, count: int, side: int, seed: int = 0) -> str:
    """Draws square pictures with captions, each unlike all others: soft blots of colour. Gives the folder's name."""
    folder = input_folder / FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    random = np.random.RandomState(seed)
    for number in range(count):
        blots = Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype=np.uint8))
        data = io.BytesIO()
        blots.resize((side, side), Image.Resampling.BICUBIC).save(data, "JPEG", quality=92)
        (folder / f"{number:05}.jpg").write_bytes(data.getvalue())
        (folder / f"{number:05}.txt").write_text(f"soft blots of colour, number {number % 64}", "utf-8")
    return f"{FOLDER}/{name}"


def node(kind: str, /, **inputs: Any) -> JSON:
    return {"class_type": kind, "inputs": inputs}


def filled(info: Mapping[str, Any], kind: str, /, **inputs: Any) -> JSON:
    """A node whose other required fields have the host's defaults."""
    if strangers := sorted(inputs.keys() - inputs_of(info, kind).keys()):
        raise KeyError(f"{kind} has no input {', '.join(strangers)}")
    values = dict(inputs)
    for name, (type_, *options) in info[kind]["input"].get("required", {}).items():
        about = options[0] if options else {}
        choices = type_ if isinstance(type_, list) else about.get("options") or []
        if name not in values and ("default" in about or choices):
            values[name] = about["default"] if "default" in about else choices[0]
    return node(kind, **values)


def inputs_of(info: Mapping[str, Any], kind: str) -> JSON:
    """A node's inputs by name."""
    if kind not in info:
        raise KeyError(f"this host has no node {kind}")
    return {**info[kind]["input"].get("required", {}), **info[kind]["input"].get("optional", {})}


def loaders(model: Model, weight_dtype: str = "default") -> tuple[JSON, Link, Link, Link]:
    """The nodes that load a model, and where MODEL, CLIP and VAE come out.

    Args:
        weight_dtype: of UNETLoader, for a model that is not a checkpoint.
    """
    if not model.is_flux:
        return {"c": node("CheckpointLoaderSimple", ckpt_name=model.checkpoint)}, ["c", 0], ["c", 1], ["c", 2]
    names = {"clip_name1": FILE.format("clip-l"), "clip_name2": FILE.format("t5")}
    nodes = {
        "m": node("UNETLoader", unet_name=model.checkpoint, weight_dtype=weight_dtype),
        "c": node("DualCLIPLoader", **names, type="flux"),
        "v": node("VAELoader", vae_name=FILE.format("ae")),
    }
    return nodes, ["m", 0], ["c", 0], ["v", 0]


def load_only(model: Model, weight_dtype: str = "default") -> JSON:
    """Loads a model and no more: later prompts find it loaded."""
    nodes, network, clip, vae = loaders(model, weight_dtype)
    return {**nodes, "hold": node("KilnBenchHold", model=network, clip=clip, vae=vae)}


def our_prompt(
    info: Mapping[str, Any], model: Model, folder: str, run: str, weight_dtype: str = "default", **config: Any
) -> JSON:
    """Our trainer: rank 16 on the attention projections that diffusers' scripts train.

    Args:
        info: the host's /object_info.
        folder: of pictures, under the input folder.
        run: a name that no other run has.
        config: fields of LoRA Config and the Options nodes.
    """
    nodes, network, clip, vae = loaders(model, weight_dtype)
    recipe = {
        "preset": "custom", "rank": RANK, "alpha": float(RANK), "targets": "attention", "learning_rate": 1e-4,
        "scheduler": "constant", "warmup": 0.0, "min_snr_gamma": 0.0, "max_grad_norm": 1.0,
        "layer_rules": "" if model.is_flux else "*proj_in rank=0\n*proj_out rank=0", **config,
    }  # fmt: skip
    recipe_nodes, recipe_link = config_nodes(info, recipe)
    return {
        **nodes,
        **recipe_nodes,
        "d": filled(info, "KilnLoadDataset", folder=folder, resolution=model.side, shortest_side=64),
        "w": node("KilnBenchWatch", model=network, after=["d", 0], run=run),
        "t": filled(
            info, "KilnTrainLoRA", model=["w", 0], clip=clip, vae=vae, dataset=["d", 0], config=recipe_link,
            name="kiln-bench", previous_run="start anew",
        ),
        "e": node("KilnBenchEnd", after=["t", 0], report=["t", 5]),
    }  # fmt: skip


def config_nodes(info: Mapping[str, Any], recipe: Mapping[str, Any]) -> tuple[JSON, Link]:
    """LoRA Config and the Options nodes that a recipe's fields need, in a row, and where the recipe comes out."""
    rest = dict(recipe)
    nodes: JSON = {}
    before: Link = []
    for kind in (each for each in CONFIG_NODES if each in info):
        own = {name: rest.pop(name) for name in list(rest) if name in inputs_of(info, kind)}
        if own or not before:
            nodes[kind] = filled(info, kind, **own, **({"config": before} if before else {}))
            before = [kind, 0]
    if rest:
        raise KeyError(f"this pack has no setting {', '.join(sorted(rest))}")
    return nodes, before


def core_prompt(
    info: Mapping[str, Any], model: Model, folder: str, run: str, weight_dtype: str = "default", **config: Any
) -> JSON:
    """ComfyUI's own trainer, as it is: it trains every layer, norm and bias.

    Args: as `our_prompt`; config: inputs of TrainLoraNode.
    """
    nodes, network, clip, vae = loaders(model, weight_dtype)
    recipe = {"rank": RANK, "learning_rate": 1e-4, "optimizer": "AdamW", "existing_lora": "[None]", **config}
    return {
        **nodes,
        "f": node("LoadImageTextDataSetFromFolder", folder=folder),
        "d": filled(info, "MakeTrainingDataset", images=["f", 0], texts=["f", 1], clip=clip, vae=vae),
        "w": node("KilnBenchWatch", model=network, after=["d", 0], run=run),
        "t": filled(info, "TrainLoraNode", model=["w", 0], latents=["d", 0], positive=["d", 1], **recipe),
        "e": node("KilnBenchEnd", after=["t", 0]),
    }
