"""Save LoRA: the file, in the Load LoRA list at once."""

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..training import host
from ..training.export import check_name, save_lora
from ..training.problems import InputError
from .types import CATEGORY, LoraModel


class SaveLoRA(io.ComfyNode):
    """Writes a LoRA with kohya's key names and metadata."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnSaveLoRA",
            display_name="Save LoRA",
            category=CATEGORY,
            description="Saves the LoRA in models/loras, as a .safetensors file. An existing file is kept: "
            "the new one gets a number.",
            search_aliases=["export lora", "safetensors"],
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="From Train LoRA."),
                io.String.Input(
                    "filename", default="my_lora",
                    tooltip="File name in models/loras, maybe with folders before it: people/anna.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file lies.")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename: Any = None) -> bool | str:
        try:
            if filename is not None:
                check_name(filename, "filename", "Save LoRA")
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, lora: Mapping[str, torch.Tensor], filename: str) -> io.NodeOutput:
        name = check_name(filename, "filename", "Save LoRA")
        path = save_lora(host.lora_folder() / f"{name}.safetensors", lora, getattr(lora, "metadata", {}))
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"Saved {path}"))
