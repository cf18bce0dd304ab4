"""Train LoRA: the run itself."""

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io

from ..training import host
from ..training.basics.errors import InputError
from ..training.config import LoRAConfig
from ..training.data.dataset import Dataset
from ..training.data.sheets import strength_grid
from ..training.lora.export import AS_TRAINED, in_precision
from ..training.lora.run_files import LONGEST_END
from ..training.lora.save import check_name
from ..training.run.graph import graph_above
from ..training.run.prepare import Models
from ..training.run.progress import SamplePicture
from ..training.run.resume import CONTINUE, PREVIOUS
from ..training.run.trainer import train_lora
from ..training.run.workflows import workflow_of
from .types import CATEGORY, KilnConfig, KilnDataset, LoraModel, LossMap

MOST_COLUMNS = 12
"""of the samples sheet, which would otherwise grow with the run"""
LONGEST_ID = 200


class TrainLoRA(io.ComfyNode):
    """Trains a LoRA in this process, on the model the graph has loaded."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnTrainLoRA",
            display_name="Train LoRA",
            category=CATEGORY,
            description="Trains a LoRA on the graph's own MODEL, which is left exactly as it was.",
            search_aliases=[
                *("finetune", "dreambooth", "kohya", "lora trainer", "resume", "network_weights", "existing_lora"),
            ],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model to train for; LoRAs already on it stay on."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                KilnDataset.Input("dataset", tooltip="From Load Dataset or Caption Images."),
                KilnConfig.Input("config", tooltip="From LoRA Config, Import Recipe or an Options node."),
                io.String.Input(
                    "name", default="my_lora",
                    tooltip="Name of the LoRA; files written on the way start with it. %year%, %month%, %day% and "
                    "%date:yyyy-MM-dd% become the date; a stopped run then goes on only while the date is the same.",
                ),
                LoraModel.Input(
                    "start", optional=True,
                    tooltip="A LoRA to go on from (kohya: network_weights; ComfyUI's trainer: existing_lora), from "
                    "Load LoRA File or Train LoRA. Its layers, ranks and kind stay.",
                ),
                io.Combo.Input(
                    "previous_run", options=list(PREVIOUS), default=CONTINUE, optional=True, advanced=True,
                    tooltip="What to do about a run of this name that was stopped: go on from its last checkpoint if "
                    "recipe, data and models are the same, which gives the same LoRA as if it had never stopped; take "
                    "over what it had learned even if they changed, and train the rest of a run that you finished "
                    "early; start anew; or stop and say what changed. Nothing is ever overwritten.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Save LoRA and Apply LoRA Preview."),
                io.Model.Output(display_name="model", tooltip="The MODEL with the LoRA on, at strength 1."),
                io.Clip.Output(display_name="clip", tooltip="The CLIP with the LoRA on, at strength 1."),
                LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
                io.Image.Output(display_name="samples", tooltip="Sample pictures in rows, if any were asked for."),
                io.String.Output(display_name="report", tooltip="What was trained, on what, how it went."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, name: Any = None) -> bool | str:
        try:
            if name is not None:
                check_name(name, "name", "Train LoRA", LONGEST_END)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Dataset,
        config: LoRAConfig,
        name: str,
        start: Mapping[str, torch.Tensor] | None = None,
        previous_run: str = CONTINUE,
    ) -> io.NodeOutput:
        name = check_name(name, "name", "Train LoRA", LONGEST_END)
        prompt, information = (cls.hidden.prompt, cls.hidden.extra_pnginfo) if cls.hidden is not None else (None, None)
        _, node = host.running_node()
        trained = train_lora(
            Models(model, clip, vae),
            dataset,
            config,
            name,
            start=start,
            previous=previous_run,
            workflow=workflow_id(information),
            graph={each: graph_above(prompt, node, each) for each in ("model", "clip", "vae")},
        )
        # As its file will be: what is drawn here is what the saved LoRA draws.
        model_with, clip_with = host.with_lora(model, clip, in_precision(trained.lora, AS_TRAINED), 1.0)
        samples = None
        with host.Telling(lambda sentence: host.log("%s", sentence))("The samples sheet"):
            samples = samples_sheet(trained.samples) if trained.samples else None
        return io.NodeOutput(
            trained.lora,
            model_with,
            clip_with,
            {"loss": trained.losses},
            host.empty_output() if samples is None else samples,
            trained.report,
        )


def workflow_id(extra_pnginfo: Any) -> str:
    """The id that the page gave the workflow; empty where it gave none, and in API form."""
    workflow = extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, dict) else None
    found = workflow_of(workflow.get("id")) if isinstance(workflow, dict) else ""
    return found if len(found) <= LONGEST_ID else ""


def samples_sheet(samples: list[SamplePicture]) -> torch.Tensor:
    """One row a prompt, one column a step, evenly thinned out where there are many: (1, H, W, 3)."""
    steps = sorted({sample.step for sample in samples})
    last = len(steps) - 1
    columns = min(len(steps), MOST_COLUMNS)
    steps = sorted({steps[round(n * last / max(1, columns - 1))] for n in range(columns)})
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    rows = [
        (prompt, [sample.pixels for sample in samples if sample.prompt == prompt and sample.step in steps])
        for prompt in prompts
    ]
    return strength_grid(rows, [f"step {step}" for step in steps])
