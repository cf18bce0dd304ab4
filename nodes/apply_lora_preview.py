"""Apply LoRA Preview: what the LoRA does at each strength."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..training import host
from ..training.export import AS_TRAINED, in_precision
from ..training.lora_files import for_host
from ..training.problems import raise_if_any
from ..training.sheets import strength_grid
from .types import CATEGORY, LoraModel


class ApplyLoRAPreview(io.ComfyNode):
    """A labelled grid of strengths over prompts, and the model at the chosen strength."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnApplyLoRAPreview",
            display_name="Apply LoRA Preview",
            category=CATEGORY,
            description="Draws the same pictures at several strengths of the LoRA, side by side.",
            search_aliases=["xy plot", "lora strength", "lora grid"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model without the LoRA."),
                io.Clip.Input("clip", tooltip="The text encoder without the LoRA."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                LoraModel.Input("lora", tooltip="From Train LoRA, Load LoRA File or Merge and Resize LoRAs."),
                io.String.Input(
                    "prompts", default="", multiline=True, tooltip="A prompt a line: one row each.",
                ),
                io.String.Input(
                    "strengths", default="0, 0.6, 0.7, 0.8, 0.9, 1.0",
                    tooltip="One column each, with commas between; 0 is the model without the LoRA.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-10.0, max=10.0, step=0.05,
                    tooltip="Strength of the LoRA on the MODEL and CLIP that come out; 0.7 to 1 is usual.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**53 - 1,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Noise of the first row; the next rows take the next seeds.",
                ),
                io.Int.Input("width", default=512, min=64, max=4096, step=8, tooltip="Of each picture, in pixels."),
                io.Int.Input("height", default=512, min=64, max=4096, step=8, tooltip="Of each picture, in pixels."),
                io.Int.Input("steps", default=20, min=1, max=200, tooltip="Sampler steps: 20 to 30 is usual."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Guidance: 7 for "
                "SD1.5, 5 to 7 for SDXL; 1 = off."),
                io.String.Input(
                    "negative_prompt", default="", multiline=True, advanced=True, tooltip="What not to draw.",
                ),
                io.Combo.Input(
                    "sampler", options=host.sampler_names(), default="euler", advanced=True,
                    tooltip="As in KSampler.",
                ),
                io.Combo.Input(
                    "scheduler", options=host.scheduler_names(), default="normal", advanced=True,
                    tooltip="As in KSampler.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The labelled grid."),
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on, at `strength`."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRA on, at `strength`."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        lora: Mapping[str, torch.Tensor],
        prompts: str,
        strengths: str,
        strength: float,
        seed: int,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        negative_prompt: str,
        sampler: str,
        scheduler: str,
    ) -> io.NodeOutput:
        columns = parse_strengths(strengths)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
        lora = for_host(in_precision(lora, AS_TRAINED), host.layer_names(model, clip))
        progress = host.progress_bar(len(columns) * len(lines))
        pictures: list[list[torch.Tensor]] = [[] for _ in lines]
        for column, value in enumerate(columns):
            model_with, clip_with = host.with_lora(model, clip, lora, value) if value else (model, clip)
            for row, prompt in enumerate(lines):
                pixels = host.draw(
                    model_with, clip_with, vae, prompt, negative_prompt, seed=seed + row, width=width,
                    height=height, steps=steps, guidance=cfg, sampler=sampler, scheduler=scheduler,
                )  # fmt: skip
                pictures[row].append(pixels)
                progress(column * len(lines) + row + 1)
        grid = strength_grid(list(zip(lines, pictures, strict=True)), [f"{value:g}" for value in columns])
        return io.NodeOutput(grid, *host.with_lora(model, clip, lora, strength), ui=ui.PreviewImage(grid, cls=cls))


def parse_strengths(text: str) -> list[float]:
    """Numbers separated by commas, spaces or lines.

    Raises:
        InputError: none, or something that is no number.
    """
    values, problems = [], []
    for part in re.split(r"[,;\s]+", text.strip(", ;\t\r\n")):
        try:
            values.append(float(part))
            if not math.isfinite(values[-1]):
                raise ValueError
        except ValueError:
            problems.append(f"strengths holds {part!r}; write numbers separated by commas, as in 0, 0.6, 0.8, 1.")
    raise_if_any("Apply LoRA Preview", problems)
    return values
