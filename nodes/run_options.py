"""Run Options: measuring while it trains, and what happens when it stops."""

from typing import Any

from comfy_api.latest import io

from ..training.config import ON_DIVERGENCE, LoRAConfig
from .fields import Fields, not_default
from .types import CATEGORY, KilnConfig


class RunOptions(io.ComfyNode):
    """A recipe with other settings of validation and checkpoints."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        field = Fields()
        return io.Schema(
            node_id="KilnRunOptions",
            display_name="Run Options",
            category=CATEGORY,
            description="Goes between LoRA Config or Import Recipe and Train LoRA: pictures held out to measure on, "
            "when to end, checkpoints. A field at its default leaves what the config says.",
            search_aliases=[
                *("validation", "early stopping", "overfitting", "checkpoint", "resume", "save_state", "best"),
            ],
            inputs=[
                KilnConfig.Input("config", tooltip="From LoRA Config, Import Recipe or another Options node."),
                field.number(
                    "validation_share",
                    "Share of the pictures held out of training to measure on: 0.1 of 30 pictures or more tells when "
                    "it begins to learn by heart. 0 = off.",
                    0.01,
                    False,
                ),
                field.integer("validation_every", "Steps between two looks at the held-out pictures.", False),
                field.integer(
                    "validation_patience",
                    "Ends the run when so many validations in a row brought nothing better: 5 is a start. 0 = never.",
                    False,
                ),
                field.switch(
                    "keep_best", "The LoRA is that of the best validation instead of that of the last step.", False
                ),
                field.choice(
                    "on_divergence",
                    ON_DIVERGENCE,
                    "When the loss is no number any more, or explodes to 100 times the largest before it: stop, or "
                    "step back to the last checkpoint and go on with half the learning rate, 3 times at most.",
                    False,
                ),
                field.number(
                    "checkpoint_minutes",
                    "Minutes between two checkpoints, from which a run goes on after a stop, a crash or a power cut "
                    "when you queue the same workflow again.",
                    0.5,
                    False,
                ),
                field.integer("keep_checkpoints", "The newest checkpoints that are kept on the disk.", False),
            ],
            outputs=[KilnConfig.Output(display_name="config", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, config: LoRAConfig, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(config.changed(**not_default(values)))
