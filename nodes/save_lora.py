"""Save LoRA: the file, in the Load LoRA list at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..training import host
from ..training.basics.errors import InputError
from ..training.lora.export import AS_TRAINED, DTYPES, FORMATS, as_format, in_precision, knows_layers, notes_about
from ..training.lora.header import LARGEST_OPENED_HEADER, header_size, workflow_metadata
from ..training.lora.lora import LoRAModel
from ..training.lora.peft_dora import with_hosts_dora
from ..training.lora.run_files import delete_partials
from ..training.lora.save import check_name, save_lora
from .types import CATEGORY, LoraModel

GRAPH = ("workflow", "prompt")
"""Metadata of the graph that made a file; a loaded LoRA may bring another's."""


class SaveLoRA(io.ComfyNode):
    """Writes a LoRA with its metadata, in the form that other programs take."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnSaveLoRA",
            display_name="Save LoRA",
            category=CATEGORY,
            description="Saves the LoRA in models/loras, as a .safetensors file. An existing file is kept: "
            "the new one gets a number.",
            search_aliases=["export lora", "convert lora", "safetensors"],
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="From Train LoRA, Load LoRA File or Merge and Resize LoRAs."),
                io.String.Input(
                    "filename", default="my_lora",
                    tooltip="File name in models/loras, maybe with folders before it: people/anna. %year%, %month%, "
                    "%day% and %date:yyyy-MM-dd% become the date.",
                ),
                io.Combo.Input(
                    "format", options=list(FORMATS), default=FORMATS[0], optional=True,
                    tooltip="Key names. kohya: for ComfyUI, A1111, Forge and the trainers. diffusers: for its "
                    "load_lora_weights and for ComfyUI; plain LoRA only. comfyui: as ComfyUI's own trainer writes.",
                ),
                io.Combo.Input(
                    "precision", options=[AS_TRAINED, *DTYPES], default=AS_TRAINED, optional=True,
                    tooltip="Number format. as trained: the recipe's save_precision; of a LoRA from a file, its own. "
                    "fp16 and bf16 files are half as large as fp32.",
                ),
                io.Boolean.Input(
                    "save_workflow", default=True, optional=True,
                    tooltip="The file dropped on the canvas opens the graph that made it. Turn it off to share the "
                    "file without the graph.",
                ),
                io.Model.Input(
                    "model", optional=True, advanced=True,
                    tooltip="Only to change the format of a LoRA from a file: the model it was trained on.",
                ),
                io.Clip.Input(
                    "clip", optional=True, advanced=True,
                    tooltip="Only to change the format of a LoRA from a file that has text encoder layers.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file lies.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
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
    def execute(
        cls,
        lora: Mapping[str, torch.Tensor],
        filename: str,
        format: str = FORMATS[0],
        precision: str = AS_TRAINED,
        save_workflow: bool = True,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        name = check_name(filename, "filename", "Save LoRA")
        names = host.changeable_names(model, clip) if model is not None or clip is not None else None
        notes = []
        if format == FORMATS[0] and not knows_layers(lora, format, names):
            converted = in_precision(lora, precision)
            notes.append("Its keys are as they came: connect the model to have them in kohya's form.")
        else:
            readable = lora if format == "diffusers" else with_hosts_dora(lora, names or {}, model, clip)
            converted = as_format(readable, format, names, precision)
        notes += notes_about(lora, converted)
        metadata = {key: value for key, value in converted.metadata.items() if key not in GRAPH}
        if save_workflow and cls.hidden is not None:
            graph = workflow_metadata(cls.hidden.prompt, cls.hidden.extra_pnginfo)
            if header_size(converted, {**metadata, **graph}) < LARGEST_OPENED_HEADER:
                metadata |= graph
            else:
                notes.append("The workflow is too large to be kept in the file.")
        path = save_lora(host.lora_folder() / f"{name}.safetensors", converted, metadata)
        if path.stem != Path(name).name:
            notes.append(f"{Path(name).name}.safetensors was there already, and is kept.")
        if isinstance(lora, LoRAModel) and (session := lora.metadata.get("ss_session_id")):
            for gone in delete_partials(host.lora_folder(), lora.name, session, but=path):
                notes.append(f"{gone.name}, which a stop of the same run had kept, is gone.")
        return io.NodeOutput(str(path), ui=ui.PreviewText("\n".join([f"Saved {path}", *notes])))
