"""Merge and Resize LoRAs: several LoRAs as one, and a LoRA at a lower rank."""

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..training import host
from ..training.lora.merge import Part, merge_loras
from ..training.lora.peft_dora import with_hosts_dora
from .types import CATEGORY, LoraModel

PARTS = (1, 2, 3, 4)


class MergeLoRAs(io.ComfyNode):
    """The weighted sum of up to four LoRAs, maybe of a lower rank."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnMergeLoRAs",
            display_name="Merge and Resize LoRAs",
            category=CATEGORY,
            description="Makes one LoRA of several, each with its weight, and lowers the rank where you want a smaller "
            "file. With one LoRA it only resizes.",
            search_aliases=["resize lora", "svd", "combine loras", "lora rank"],
            inputs=[
                LoraModel.Input("lora_1", tooltip="From Train LoRA or Load LoRA File. Its metadata is kept."),
                *(
                    LoraModel.Input(f"lora_{number}", optional=True, tooltip="Another LoRA for the same kind of model.")
                    for number in PARTS[1:]
                ),
                *(
                    io.Float.Input(
                        f"weight_{number}", default=1.0, min=-4.0, max=4.0, step=0.05, optional=True,
                        tooltip=f"Strength of lora_{number} in the sum; below 0 it is taken away.",
                    )
                    for number in PARTS
                ),
                io.Int.Input(
                    "rank", default=0, min=0, max=1024, optional=True,
                    tooltip="The highest rank of a layer: 8 to 32 makes small files, and the report says what it "
                    "costs. 0 = exact: the ranks add up.",
                ),
                io.Model.Input(
                    "model", optional=True, advanced=True,
                    tooltip="Only for LoRAs whose key names are not kohya's: the model they are for.",
                ),
                io.Clip.Input(
                    "clip", optional=True, advanced=True,
                    tooltip="Only for LoRAs with text encoder layers whose key names are not kohya's.",
                ),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Save LoRA, Apply LoRA Preview and others."),
                io.String.Output(display_name="report", tooltip="Layers, ranks, and the error of the lower rank."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, lora_1: Mapping[str, torch.Tensor], rank: int = 0, model: Any = None, clip: Any = None, **inputs: Any
    ) -> io.NodeOutput:
        loras = {1: lora_1} | {number: inputs.get(f"lora_{number}") for number in PARTS[1:]}
        names = host.changeable_names(model, clip) if model is not None or clip is not None else {}
        parts = [
            Part(with_hosts_dora(lora, names, model, clip), inputs.get(f"weight_{number}", 1.0), f"lora_{number}")
            for number, lora in loras.items()
            if lora is not None
        ]
        progress = host.progress_bar(100)

        def on_layer(done: int, total: int) -> None:
            host.raise_if_interrupted()
            progress(100 * done // total)

        merged = merge_loras(parts, rank, names.values(), host.inference_device(), on_layer)
        return io.NodeOutput(merged.lora, merged.report, ui=ui.PreviewText(merged.report))
