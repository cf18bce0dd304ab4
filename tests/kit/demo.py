"""The demo: trains a LoRA on a concept the kit's model has never seen, in a real ComfyUI, and judges it.

python3 dev.py demo [--seed N] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from client import Client
from host import PACK, Server, has_cuda
from kit.concepts import Concept, write_base_pictures
from kit.draw import Scene, random_scene
from kit.judge import base_right, shows_concept
from saved_workflows import workflow_to_prompt

CHECKPOINT = "kiln-kit.safetensors"
WORKFLOW = PACK / "example_workflows" / "LoRA Kiln demo.json"
FOLDER = "lora_kiln_demo"  # in ComfyUI's input folder; the workflow names it
PICTURES, UNCAPTIONED, BASE_PICTURES = 16, 4, 32
STRENGTHS = (0.6, 0.7, 0.8, 0.9, 1.0)
SEED = 1  # of the concept that the workflow is written for
TRIGGER_IN_WORKFLOW = Concept(SEED).trigger
LOSS_LINES = 10


@dataclass
class Figures:
    """What a demo run found. Rates are from 0 to 1."""

    seed: int
    trigger: str
    device: str
    pictures: int
    """in each cell"""
    concept_rate: dict[str, float] = field(default_factory=dict)
    """with the trigger, by strength; "0" is before"""
    concept_rate_without_trigger: dict[str, float] = field(default_factory=dict)
    """before and after"""
    base_rate: dict[str, float] = field(default_factory=dict)
    """before and after"""
    base_kept: float = 0.0
    """of the base captions right before, the share that is right after"""
    seconds: dict[str, float] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    report: str = ""

    def table(self) -> str:
        cells = [f"{strength:>6}" for strength in self.concept_rate]
        rates = [f"{self._count(rate):>6}" for rate in self.concept_rate.values()]
        without, base = self.concept_rate_without_trigger, self.base_rate
        return "\n".join(
            [
                f"concept {self.trigger!r} shown, of {self.pictures} pictures each",
                "  strength           " + " ".join(cells),
                "  with the trigger   " + " ".join(rates),
                f"  without            before {self._count(without['before'])}, after {self._count(without['after'])}",
                "base captions drawn right",
                f"  before {self._count(base['before'])}, after {self._count(base['after'])}; "
                f"of those right before, {self.base_kept:.0%} still are",
            ]
        )

    def _count(self, rate: float) -> str:
        return f"{round(rate * self.pictures)}/{self.pictures}"


def write_data(input_folder: Path, concept: Concept) -> None:
    """The concept's pictures, some of them without caption, and base pictures for regularisation."""
    folder = input_folder / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    concept.write_dataset(folder / "pictures", count=PICTURES, missing_captions=UNCAPTIONED)
    write_base_pictures(folder / "base", concept.seed, BASE_PICTURES)


def demo_prompt(client: Client, concept: Concept, config: Mapping[str, Any] = {}) -> dict[str, Any]:  # noqa: B006
    """The example workflow in API form, with the concept's own word.

    Args:
        config: values for the LoRA Config node in place of the workflow's.
    """
    text = WORKFLOW.read_text(encoding="utf-8").replace(TRIGGER_IN_WORKFLOW, concept.trigger)
    prompt = workflow_to_prompt(json.loads(text), client.object_info())
    node(prompt, "KilnLoRAConfig")["inputs"].update(config)
    node(prompt, "KilnTrainLoRA")["inputs"]["previous_run"] = "start anew"  # it is to train, not to be remembered
    return prompt


def node(prompt: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The first node of a class."""
    return prompt[node_id(prompt, kind)]


def node_id(prompt: Mapping[str, Any], kind: str) -> str:
    """The id of the first node of a class."""
    return next(key for key, value in prompt.items() if value["class_type"] == kind)


def only(prompt: dict[str, Any], kind: str) -> dict[str, Any]:
    """The part of a prompt that a node needs, with a preview of the node's last text behind it."""
    target = node_id(prompt, kind)
    waiting, wanted = [target], set()
    while waiting:
        wanted.add(current := waiting.pop())
        waiting += [value[0] for value in prompt[current]["inputs"].values() if isinstance(value, list)]
    return {key: prompt[key] for key in wanted}


def draw(
    client: Client,
    texts: Sequence[str],
    lora: str | None = None,
    strength: float = 1.0,
    seed: int = 0,
    steps: int = 14,
    untold: str = "",
) -> Tensor:
    """One picture a text from the kit's checkpoint, by the core's own nodes: (B, H, W, 3) in 0 to 1.

    Args:
        untold: the negative prompt. Spaces say nothing, but with more of them the host draws anew what it has drawn.
    """
    prompt: dict[str, Any] = {"c": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)}
    model, clip = ["c", 0], ["c", 1]
    if lora:
        prompt["l"] = _node(
            "LoraLoader", model=model, clip=clip, lora_name=lora, strength_model=strength, strength_clip=strength
        )
        model, clip = ["l", 0], ["l", 1]
    prompt["n"] = _node("CLIPTextEncode", text=untold, clip=clip)
    prompt["e"] = _node("EmptyLatentImage", width=128, height=128, batch_size=1)
    for i, text in enumerate(texts):
        prompt[f"p{i}"] = _node("CLIPTextEncode", text=text, clip=clip)
        prompt[f"k{i}"] = _node(
            "KSampler", model=model, seed=seed + i, steps=steps, cfg=4.0, sampler_name="dpmpp_2m", scheduler="karras",
            positive=[f"p{i}", 0], negative=["n", 0], latent_image=["e", 0], denoise=1.0,
        )  # fmt: skip
        prompt[f"d{i}"] = _node("VAEDecode", samples=[f"k{i}", 0], vae=["c", 2])
        prompt[f"s{i}"] = _node("PreviewImage", images=[f"d{i}", 0])
    outputs = client.run(prompt)["outputs"]
    return torch.stack([read_image(client, outputs[f"s{i}"]["images"][0]) for i in range(len(texts))])


def read_image(client: Client, image: Mapping[str, str]) -> Tensor:
    """A picture of the server's: (H, W, 3) in 0 to 1."""
    with Image.open(io.BytesIO(client.view(image))) as opened:
        return torch.from_numpy(np.asarray(opened.convert("RGB"), dtype=np.float32) / 255)


class Judgement:
    """Draws and judges the cells of one concept."""

    def __init__(self, client: Client, concept: Concept, pictures: int) -> None:
        self.client, self.concept = client, concept
        self.scenes = concept.scenes(1000, pictures)
        rng = Random(f"asked {concept.seed}")
        self.base_scenes: list[Scene] = [random_scene(rng, pairs=0) for _ in range(pictures)]

    def with_trigger(self, lora: str | None, strength: float = 1.0) -> tuple[Tensor, list[bool]]:
        """Pictures of captions with the trigger, and whether each shows the concept."""
        pictures = draw(self.client, [scene.caption() for scene in self.scenes], lora, strength)
        return pictures, shows_concept(pictures, self.concept)[0]

    def base(self, lora: str | None, strength: float = 1.0) -> tuple[Tensor, list[bool], list[bool]]:
        """Pictures of base captions, whether each is right, and whether each shows the concept."""
        pictures = draw(self.client, [scene.caption() for scene in self.base_scenes], lora, strength, seed=500)
        return pictures, base_right(pictures, self.base_scenes), shows_concept(pictures, self.concept)[0]


def print_loss(kind: str, data: Mapping[str, Any], printed: set[int] | None = None) -> None:
    """Prints about ten lines of a run's loss from its events."""
    printed = print_loss.__dict__.setdefault("printed", set()) if printed is None else printed
    if kind != "kiln.run" or not data["step"]:
        return
    tenth = data["step"] * LOSS_LINES // data["steps"]
    if (data["prompt_id"], tenth) not in printed:
        printed.add((data["prompt_id"], tenth))
        print(
            f"  step {data['step']:4} of {data['steps']}   loss {data['loss'] or 0:.4f}   "
            f"smoothed {data['smoothed'] or 0:.4f}   {data['seconds_left']:.0f} s left",
            flush=True,
        )


def run_demo(server: Server, client: Client, seed: int, pictures: int, strengths: Sequence[float]) -> Figures:
    """The whole demo on a running server."""
    concept = Concept(seed)
    figures = Figures(seed, concept.trigger, "cuda" if has_cuda() else "cpu", pictures)
    started = time.monotonic()

    def phase(name: str) -> None:
        nonlocal started
        figures.seconds[name] = round(time.monotonic() - started, 1)
        started = time.monotonic()

    write_data(server.workspace / "input", concept)
    judgement = Judgement(client, concept, pictures)
    print(f"Before: drawing {pictures} pictures with the trigger {concept.trigger!r}, {pictures} without", flush=True)
    before, shown_before = judgement.with_trigger(None)
    base_before, right_before, stray_before = judgement.base(None)
    phase("judge before")

    print("Training: the example workflow, from pictures to a saved LoRA", flush=True)
    prompt = demo_prompt(client, concept)
    outputs = client.run(prompt, on_event=print_loss)["outputs"]
    saved = Path(outputs[node_id(prompt, "KilnSaveLoRA")]["text"][0].splitlines()[0].removeprefix("Saved "))
    figures.seconds["training"] = round(client.get("/kiln/runs")[-1]["elapsed"], 1)
    phase("workflow")

    print("After: drawing at each strength", flush=True)
    lora = saved.name
    figures.concept_rate["0"] = _rate(shown_before)
    after = before
    for strength in strengths:
        after, shown = judgement.with_trigger(lora, strength)
        figures.concept_rate[f"{strength:g}"] = _rate(shown)
    base_after, right_after, stray_after = judgement.base(lora)
    figures.base_rate = {"before": _rate(right_before), "after": _rate(right_after)}
    figures.concept_rate_without_trigger = {"before": _rate(stray_before), "after": _rate(stray_after)}
    kept = [after_ for before_, after_ in zip(right_before, right_after, strict=True) if before_]
    figures.base_kept = _rate(kept) if kept else 0.0
    phase("judge after")

    results = server.workspace / "output" / f"demo-{seed}"
    results.mkdir(parents=True, exist_ok=True)
    rows = {
        "with the trigger, before": before, f"with the trigger, LoRA at {strengths[-1]:g}": after,
        "base captions, before": base_before, f"base captions, LoRA at {strengths[-1]:g}": base_after,
    }  # fmt: skip
    figures.paths = {"lora": str(saved), "before_after": str(_sheet(rows, results / "before_after.png"))}
    sheets = {"LossGraphNode": "loss", "KilnApplyLoRAPreview": "strengths", "KilnLoadDataset": "dataset"}
    for kind, name in sheets.items():
        image = outputs[node_id(prompt, kind)]["images"][0]
        (results / f"{name}.png").write_bytes(client.view(image))
        figures.paths[name] = str(results / f"{name}.png")
    return figures


def _sheet(rows: Mapping[str, Tensor], path: Path) -> Path:
    """Writes rows of pictures, each with its heading."""
    font = ImageFont.load_default(13)
    widest = max(len(pictures) for pictures in rows.values())
    sheet = Image.new("RGB", (8 + widest * 136, len(rows) * 164 + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for r, (heading, pictures) in enumerate(rows.items()):
        pen.text((8, r * 164 + 8), heading, "black", font)
        for c, picture in enumerate(pictures):
            sheet.paste(Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)), (8 + c * 136, r * 164 + 28))
    sheet.save(path)
    return path


def _rate(answers: Sequence[bool]) -> float:
    return sum(answers) / len(answers)


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host-dir", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--kit", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--port", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=int, help="in each cell of the table (default: 8, with a GPU 16)")
    options, host_arguments = parser.parse_known_args()  # the rest goes to ComfyUI's main.py
    pictures = options.pictures or (16 if has_cuda() else 8)
    started = time.monotonic()
    with Server(options.host_dir, options.workspace, host_arguments, kit=options.kit, port=options.port) as server:
        print(f"ComfyUI runs at {server.url}", flush=True)
        with server.client() as client:
            figures = run_demo(server, client, options.seed, pictures, STRENGTHS)
    figures.seconds["all"] = round(time.monotonic() - started, 1)
    print("\n" + figures.table() + "\n")
    for name, path in figures.paths.items():
        print(f"{name:13} {path}")
    print("seconds      ", ", ".join(f"{name} {value:g}" for name, value in figures.seconds.items()))
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
