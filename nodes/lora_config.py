"""LoRA Config: the recipe."""

from typing import Any

from comfy_api.latest import io

from ..training.config import (
    CUSTOM,
    OPTIMIZERS,
    PRECISIONS,
    PRESETS,
    SAVE_PRECISIONS,
    SCHEDULERS,
    TARGETS,
    LoRAConfig,
    preset_values,
)
from .types import CATEGORY, KilnConfig

START = "SD1.5 character or object"


class LoRAConfigNode(io.ComfyNode):
    """The recipe of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        start = preset_values(START)

        def integer(name: str, tooltip: str, low: int = 0, high: int = 1_000_000, advanced: bool = True, **more: Any):
            return io.Int.Input(
                name, default=start[name], min=low, max=high, tooltip=tooltip, advanced=advanced, optional=True, **more
            )

        def number(
            name: str, tooltip: str, low: float = 0.0, high: float = 1e6, step: float = 0.01, advanced: bool = True
        ):
            return io.Float.Input(
                name, default=start[name], min=low, max=high, step=step, round=False,  # pyright: ignore[reportArgumentType]
                tooltip=tooltip, advanced=advanced, optional=True,
            )  # fmt: skip

        def choice(name: str, options: tuple[str, ...], tooltip: str, advanced: bool = True):
            return io.Combo.Input(
                name, options=list(options), default=start[name], tooltip=tooltip, advanced=advanced, optional=True
            )

        return io.Schema(
            node_id="KilnLoRAConfig",
            display_name="LoRA Config",
            category=CATEGORY,
            description="The recipe of a training run. Choosing a preset fills in the fields below it.",
            search_aliases=["training settings", "hyperparameters", "kohya"],
            inputs=[
                io.Combo.Input(
                    "preset", options=[*PRESETS, CUSTOM], default=START,
                    tooltip="A starting recipe. Choosing one fills in the fields below; they are what counts.",
                ),
                integer("rank", "Size of the LoRA: 8 to 32 for a subject, 32 to 64 for a style.", 1, 1024, False),
                number("alpha", "The LoRA is scaled by alpha / rank. Half of rank, or the same, is usual.",
                       0.001, 1024.0, 0.5, False),
                choice("targets", TARGETS, "Which layers learn: more layers learn more, and keep less of the base.",
                       False),
                number("learning_rate", "1e-4 is the usual start; halve it if pictures break, double it if nothing "
                       "is learned.", 1e-8, 10.0, 1e-6, False),
                integer("steps", "Optimizer steps of the run.", 1, 1_000_000, False),
                integer("batch_size", "Pictures in one forward pass: more is steadier and takes more memory.", 1, 512,
                        False),
                integer("seed", "All random choices follow from it: same seed, same LoRA.", 0, 2**53 - 1, False,
                        control_after_generate=io.ControlAfterGenerate.fixed),
                integer("epochs", "Passes over the data; 0 = use steps.", 0, 100_000),
                choice("optimizer", OPTIMIZERS, "adamw is the standard; adamw8bit needs bitsandbytes and saves "
                       "memory; adafactor saves memory too."),
                number("weight_decay", "Pulls the LoRA towards nothing, against overfitting.", 0.0, 10.0, 0.001),
                choice("scheduler", SCHEDULERS, "How the learning rate goes on after the warm-up."),
                number("warmup", "Rise of the learning rate: below 1 a share of the run, from 1 on steps.", 0.0, 1e6),
                integer("gradient_accumulation", "Forward passes for one step: a larger batch in the same memory.", 1,
                        1024),
                number("max_grad_norm", "Gradients are scaled down to this norm; 0 = off.", 0.0, 1000.0, 0.1),
                number("min_snr_gamma", "Balances the loss over noise levels; 5 is usual, 0 = off.", 0.0, 100.0, 0.5),
                number("noise_offset", "Helps with very dark and very bright pictures; 0.05 is usual, 0 = off.", 0.0,
                       1.0),
                choice("precision", PRECISIONS, "Arithmetic of the base model. auto: bf16 where the GPU has it."),
                choice("save_precision", SAVE_PRECISIONS, "Number format of the finished LoRA."),
                io.Boolean.Input(
                    "gradient_checkpointing", default=start["gradient_checkpointing"], optional=True, advanced=True,
                    tooltip="Far less memory for about a third more time. On for SDXL on cards below 24 GB.",
                ),
                integer("save_every", "Steps between LoRA files written on the way; 0 = off."),
                integer("sample_every", "Steps between sample pictures; 0 = off."),
                io.String.Input(
                    "sample_prompts", default="", multiline=True, optional=True, advanced=True,
                    tooltip="A prompt a line, drawn every sample_every steps.",
                ),
                integer("sample_steps", "Sampler steps of a sample picture.", 1, 200),
                number("sample_guidance", "Classifier-free guidance of a sample picture; 1 = off.", 0.0, 30.0, 0.5),
            ],
            outputs=[KilnConfig.Output(display_name="config", tooltip="For Train LoRA.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, preset: str, **values: Any) -> io.NodeOutput:
        given = {name: value for name, value in values.items() if value is not None}
        if "sample_prompts" in given:
            lines = (line.strip() for line in given["sample_prompts"].splitlines())
            given["sample_prompts"] = tuple(dict.fromkeys(line for line in lines if line))
        return io.NodeOutput(LoRAConfig(**{**preset_values(preset), **given}))
