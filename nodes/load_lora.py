"""Load LoRA File: a LoRA of any form, to be trained on, merged, drawn with or saved in another form."""

import os
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..training.lora_files import describe_lora, read_lora_file
from ..training.problems import InputError
from .types import CATEGORY, LoraModel


class LoadLoRA(io.ComfyNode):
    """Reads a LoRA file, with its metadata."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnLoadLoRA",
            display_name="Load LoRA File",
            category=CATEGORY,
            description="Reads a LoRA from models/loras as it is, with kohya's, ComfyUI's or diffusers' key names, and "
            "its metadata: to train on from it, to merge it or to save it in another format.",
            search_aliases=["import lora", "lora info", "resume lora", "lora metadata"],
            inputs=[
                io.Combo.Input("lora_name", options=_files(), tooltip="A .safetensors file in models/loras."),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Train LoRA, Save LoRA, Merge LoRAs and others."),
                io.String.Output(display_name="info", tooltip="Kind, rank, layers, base model."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_name: str) -> Any:
        path = folder_paths.get_full_path("loras", lora_name)
        status = os.stat(path) if path else None
        return (status.st_mtime_ns, status.st_size) if status else None

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        path = folder_paths.get_full_path("loras", lora_name) if lora_name in _files() else None
        if path is None:
            problem = (
                f"lora_name is {lora_name!r}, which is no .safetensors file in models/loras: choose one of the list."
            )
            raise InputError("Load LoRA File", [problem])
        lora = read_lora_file(Path(path))
        info = describe_lora(lora)
        return io.NodeOutput(lora, info, ui=ui.PreviewText(info))


def _files() -> list[str]:
    return [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]
