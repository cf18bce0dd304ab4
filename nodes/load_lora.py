"""Load LoRA File: a LoRA of any form, to be trained on, merged, drawn with or saved in another form."""

from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..training import host
from ..training.basics.errors import InputError
from ..training.basics.folders import fingerprint
from ..training.lora.describe import describe_lora
from ..training.lora.files import read_lora_file
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
                io.Combo.Input("lora_name", options=host.lora_files(), tooltip="A .safetensors file in models/loras."),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Train LoRA, Save LoRA, Merge and Resize LoRAs."),
                io.String.Output(display_name="info", tooltip="Kind, rank, alpha, layers, base model."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, lora_name: Any = None) -> bool | str:
        try:
            if lora_name is not None:
                _path(lora_name)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, lora_name: str) -> Any:
        try:
            return fingerprint(_path(lora_name))
        except InputError:
            return None

    @classmethod
    def execute(cls, lora_name: str) -> io.NodeOutput:
        lora = read_lora_file(_path(lora_name))
        info = describe_lora(lora)
        return io.NodeOutput(lora, info, ui=ui.PreviewText(info))


def _path(lora_name: str) -> Path:
    return host.lora_path(lora_name, "lora_name", "Load LoRA File")
