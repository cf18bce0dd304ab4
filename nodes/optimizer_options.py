"""Optimizer Options: the finer points of how it is trained."""

from typing import Any

from comfy_api.latest import io

from ..training.config import LoRAConfig
from .fields import Fields, not_default
from .types import CATEGORY, KilnConfig


class OptimizerOptions(io.ComfyNode):
    """A recipe with other settings of optimizer and scheduler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        field = Fields()
        return io.Schema(
            node_id="KilnOptimizerOptions",
            display_name="Optimizer Options",
            category=CATEGORY,
            description="Goes between LoRA Config or Import Recipe and Train LoRA: settings of the optimizer and the "
            "scheduler, EMA. A field at its default leaves what the config says.",
            search_aliases=[
                *("prodigy", "d_coef", "betas", "optimizer_args", "ema", "lr scheduler", "lr_scheduler_num_cycles"),
                *("lr_scheduler_power", "deterministic"),
            ],
            inputs=[
                KilnConfig.Input("config", tooltip="From LoRA Config or Import Recipe."),
                field.text(
                    "optimizer_args",
                    "Further settings of the optimizer, separated by spaces or lines.",
                    False,
                    "betas=0.9,0.99 eps=1e-8",
                ),
                field.integer(
                    "scheduler_cycles",
                    "Cycles of cosine_with_restarts (kohya: lr_scheduler_num_cycles): 2 to 4 is usual.",
                    False,
                ),
                field.number(
                    "scheduler_power",
                    "Power of polynomial (kohya: lr_scheduler_power): 1 is linear, 2 falls faster at first.",
                    0.1,
                    False,
                ),
                field.number(
                    "ema_decay",
                    "The LoRA is a moving average of its past: 0.99 for short runs, 0.999 for long ones; 0 = off.",
                    0.00001,
                    False,
                ),
                field.switch(
                    "deterministic", "On a GPU: same seed, same LoRA, to the last bit. Some steps are slower.", False
                ),
                field.switch(
                    "fit_memory",
                    "On a GPU too small for the recipe: turn checkpointing on, take a batch in parts, bring weights "
                    "from RAM, as far as needed. The LoRA is the same, the run slower, and the report says so.",
                ),
                field.switch(
                    "cuda_graphs",
                    "On a GPU: record a training step once and replay it, several times faster. The results are the "
                    "same; turn it off to rule it out when something goes wrong.",
                ),
            ],
            outputs=[KilnConfig.Output(display_name="config", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, config: LoRAConfig, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(config.changed(**not_default(values)))
