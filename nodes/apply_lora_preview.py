"""Apply LoRA Preview: what the LoRA does at each strength."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..training import host
from ..training.basics.errors import InputError, raise_if_any
from ..training.lora.comparison import (
    Comparison,
    Drawing,
    Row,
    Sources,
    Versions,
    check_size,
    comparison_sheet,
    draw_rows,
)
from ..training.lora.comparison_cache import LastDrawn, remember_shown
from ..training.lora.export import AS_TRAINED, in_precision
from ..training.lora.files import for_host, not_of_model
from ..training.lora.peft_dora import with_hosts_dora
from .train_lora import workflow_id
from .types import CATEGORY, LoraModel

STRENGTHS, STEPS = "strengths", "strengths and steps"
STRONGEST = 10
MOST_TOLD = 10
NO_STEPS = "No earlier steps of this LoRA's run lie in models/loras: save_every in LoRA Config keeps some."
LAST = LastDrawn()


class ApplyLoRAPreview(io.ComfyNode):
    """A labelled grid of strengths over prompts and steps, and the model with what was chosen of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnApplyLoRAPreview",
            display_name="Apply LoRA Preview",
            category=CATEGORY,
            description="Draws the same pictures at several strengths of the LoRA, and of its earlier steps, side by "
            "side; click one to go on with it.",
            search_aliases=["xy plot", "lora strength", "lora grid", "compare checkpoints"],
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
                    "strength", default=1.0, min=-STRONGEST, max=STRONGEST, step=0.05,
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
                io.Combo.Input(
                    "compare", options=[STRENGTHS, STEPS], default=STRENGTHS, optional=True,
                    tooltip="What to draw: the LoRA at each strength; or, in rows of their own, also what its run "
                    "saved on the way (save_every of LoRA Config), at most 8 steps.",
                ),
                io.Int.Input(
                    "step", default=0, min=0, max=10**9, optional=True,
                    tooltip="Which of its steps goes on to MODEL and CLIP; 0 = the LoRA as it comes in. A click on a "
                    "picture sets it, and strength.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The labelled grid."),
                io.Model.Output(display_name="model", tooltip="The model with the LoRA on, as chosen."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder with the LoRA on, as chosen."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, strengths: Any = None) -> bool | str:
        try:
            if isinstance(strengths, str):
                parse_strengths(strengths)
        except InputError as error:
            return str(error)
        return True

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
        compare: str = STRENGTHS,
        step: int = 0,
    ) -> io.NodeOutput:
        host.check_present(model, clip, vae, "Apply LoRA Preview")
        columns = parse_strengths(strengths)
        lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
        drawing = Drawing(
            seed=seed,
            width=width,
            height=height,
            steps=steps,
            guidance=cfg,
            negative_prompt=negative_prompt,
            sampler=sampler,
            scheduler=scheduler,
        )
        versions = Versions(lora, host.lora_paths() if step or compare == STEPS else {})
        notes = []
        if not versions.has(step):  # chosen for another run: what was trained since must not be lost by it
            there = ", ".join(map(str, versions.files)) or "none"
            notes.append(f"The run has no file of step {step} (it has: {there}): the LoRA as it comes in goes on.")
            host.log("Apply LoRA Preview: %s", notes[-1])
            step = 0
        if step in versions.files:
            notes.append(f"Step {step} of the run is {versions.files[step].name} in Load LoRA's list.")
        names = host.changeable_names(model, clip)
        chosen = with_hosts_dora(in_precision(versions.at(step), AS_TRAINED), names, model, clip)
        chosen = for_host(chosen, names)
        if strange := not_of_model(chosen, names):
            notes.append(f"{len(strange)} entries of the LoRA are of no layer of this model, such as {strange[0]}.")
        rows = versions.chosen() if compare == STEPS else [0]
        check_size(rows, lines, columns, drawing)
        if compare == STEPS and rows == [0]:
            notes.append(NO_STEPS)
        node_id = str(cls.hidden.unique_id) if cls.hidden is not None else ""
        comparison = Comparison(tuple(rows), tuple(lines), tuple(columns), drawing)
        grid, shown = grid_of(cls, node_id, Sources(model, clip, vae, lora), versions, comparison)
        for_view = {**shown["kiln_preview"][0], "note": "\n".join(notes), "last": versions.last}
        shown = {**shown, "kiln_preview": [for_view]}
        if cls.hidden is not None:
            remember_shown(workflow_id(cls.hidden.extra_pnginfo), node_id, for_view)
        return io.NodeOutput(grid, *host.with_lora(model, clip, chosen, strength), ui=shown)


def grid_of(
    cls: type[io.ComfyNode], node_id: str, sources: Sources, versions: Versions, comparison: Comparison
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The grid (1, H, W, 3) and the node's ui output; drawn anew unless the node's last comparison was the same."""
    if found := LAST.find(node_id, sources, comparison):
        return found[0] / 255.0, found[1]
    strengths = list(comparison.strengths)
    progress = host.progress_bar(len(comparison.steps) * len(comparison.prompts) * len(strengths))
    rows = draw_rows(sources, versions, comparison, progress)
    grid = comparison_sheet(rows, strengths)
    shown = {**ui.PreviewImage(grid, cls=cls).as_dict(), "kiln_preview": [page_rows(cls, rows, strengths)]}
    LAST.keep(node_id, sources, comparison, ((grid * 255.0).round().to(torch.uint8), shown))
    return grid, shown


def page_rows(cls: type[io.ComfyNode], rows: list[Row], strengths: list[float]) -> dict[str, Any]:
    """The grid as the page takes it: the strengths, and of each row prompt, step, label and a picture a strength."""
    found = []
    for row in rows:
        files = ui.PreviewImage(torch.stack(row.pictures), cls=cls).as_dict()["images"]
        found.append(
            {"number": row.number, "prompt": row.prompt, "step": row.step, "label": row.label, "pictures": files}
        )
    return {"strengths": strengths, "rows": found}


def parse_strengths(text: str) -> list[float]:
    """Different numbers separated by commas, spaces or lines.

    Raises:
        InputError: none, something that is no number, or more than the outputs can have.
    """
    values, problems = [], []
    for part in re.split(r"[,;\s]+", text.strip(", ;\t\r\n")):
        try:
            values.append(float(part))
            if not abs(values[-1]) <= STRONGEST:
                raise ValueError
        except ValueError:
            problems.append(
                f"strengths holds {part[:40]!r}; write numbers from -{STRONGEST} to {STRONGEST} separated by commas, "
                "as in 0, 0.6, 0.8, 1."
            )
    raise_if_any("Apply LoRA Preview", problems[:MOST_TOLD])
    return list(dict.fromkeys(values))
