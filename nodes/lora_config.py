"""LoRA Config: the recipe."""

from typing import Any

from comfy_api.latest import io

from ..training.config import (
    ADAPTERS,
    BASE_PRECISIONS,
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
from .fields import Fields, present
from .types import CATEGORY, KilnConfig

START = "SD1.5 character or object"


class LoRAConfigNode(io.ComfyNode):
    """The recipe of a run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        field = Fields(preset_values(START))
        return io.Schema(
            node_id="KilnLoRAConfig",
            display_name="LoRA Config",
            category=CATEGORY,
            description="The recipe of a training run. Choosing a preset fills in what presets name: size, targets, "
            "learning rate, steps, noise.",
            search_aliases=[
                *("kohya", "training settings", "hyperparameters", "network_dim", "network_alpha", "unet_lr"),
                *("text_encoder_lr", "max_train_steps", "max_train_epochs", "train_batch_size", "lr_scheduler"),
                *(
                    "constant_with_warmup",
                    "lr_warmup_steps",
                    "mixed_precision",
                    "fp8_base",
                    "sample prompts",
                    "optimizer",
                ),
            ],
            inputs=[
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=START,
                    tooltip="Choosing one fills in rank, alpha, targets, learning_rate, steps and the like, and leaves "
                    "the rest. What stands in the fields counts.",
                ),
                field.integer(
                    "rank",
                    "Size of the LoRA (kohya: network_dim): 8 to 32 for a subject, 32 to 64 for a style. "
                    "oft: size of a block, at most the square root of a layer's rows.",
                    False,
                ),
                field.number(
                    "alpha",
                    "The LoRA is scaled by alpha / rank (kohya: network_alpha). Half of rank, or the same, is usual.",
                    0.5,
                    False,
                ),
                field.choice(
                    "targets",
                    TARGETS,
                    "attention: 160 layers in SD1.5, 582 in SDXL. attention and feed-forward: 192 and 722, kohya's "
                    "default; with convolutions too it is LoCon. More layers learn more, and keep less of the base.",
                    False,
                ),
                field.number(
                    "learning_rate",
                    "1e-4 is the usual start; halve it if pictures break, double it if nothing is learned. "
                    "prodigy wants 1.",
                    1e-7,
                    False,
                ),
                field.integer(
                    "steps",
                    "Optimizer steps of the run (kohya: max_train_steps). steps x batch_size / pictures is how "
                    "often each "
                    "is seen: 100 to 300 times is usual.",
                    False,
                ),
                field.integer(
                    "batch_size",
                    "Pictures in one forward pass: more is steadier and takes more memory; 1 to 4 is usual.",
                    False,
                ),
                field.integer(
                    "seed",
                    "All random choices follow from it: same seed, same LoRA.",
                    False,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                ),
                field.integer("epochs", "Passes over the data (kohya: max_train_epochs); 0 = use steps."),
                field.choice(
                    "optimizer",
                    OPTIMIZERS,
                    "adamw is the standard; adamw8bit and adafactor save memory; lion wants a third to a tenth "
                    "of the learning "
                    "rate; prodigy finds it by itself (learning_rate 1); schedule_free wants the scheduler constant.",
                ),
                field.number(
                    "weight_decay",
                    "Pulls the LoRA towards nothing, against overfitting; 0.01 is usual.",
                    0.001,
                ),
                field.choice(
                    "scheduler",
                    SCHEDULERS,
                    "How the learning rate goes on after the warm-up; cosine, falling to 0, suits most runs. "
                    "constant with a warmup is kohya's "
                    "constant_with_warmup.",
                ),
                field.number(
                    "warmup",
                    "Rise of the learning rate: below 1 a share of the run, from 1 on steps; 0.05 is usual.",
                ),
                field.integer(
                    "gradient_accumulation",
                    "Forward passes for one step: a larger batch in the same memory, at so many times the time.",
                ),
                field.number(
                    "max_grad_norm",
                    "Gradients are scaled down to this norm, against jumps; 1 is usual, 0 = off.",
                    0.1,
                ),
                field.number("min_snr_gamma", "Balances the loss over noise levels; 5 is usual, 0 = off.", 0.5),
                field.number("noise_offset", "Helps with very dark and very bright pictures; 0.05 is usual, 0 = off."),
                field.choice(
                    "precision",
                    PRECISIONS,
                    "Arithmetic of the base model. auto: bf16 where the GPU has it, else fp32, which takes "
                    "twice the memory; fp16 is for GPUs without bf16 (RTX 20, T4, V100).",
                ),
                field.choice(
                    "save_precision",
                    SAVE_PRECISIONS,
                    "Number format of the finished LoRA: fp16 suits every program, fp32 is twice as large.",
                ),
                field.switch(
                    "gradient_checkpointing",
                    "Far less memory for about a third more time. On for SDXL on cards below 24 GB.",
                ),
                field.integer(
                    "save_every",
                    "Steps between LoRA files written on the way, to choose the best from: 250 is usual; 0 = off.",
                ),
                field.integer(
                    "sample_every",
                    "Steps between sample pictures: 100 to 250 is usual; 0 = off. It needs sample_prompts.",
                ),
                field.text(
                    "sample_prompts",
                    "A prompt a line, drawn every sample_every steps. Write the trigger word into them.",
                ),
                field.integer("sample_steps", "Sampler steps of a sample picture: 20 is enough to judge by."),
                field.number(
                    "sample_guidance",
                    "Classifier-free guidance of a sample picture: 7 for SD1.5 and SDXL, 3.5 for Flux; 1 = off.",
                    0.5,
                ),
                field.choice(
                    "adapter",
                    ADAPTERS,
                    "lora is what every program reads. dora keeps closer to full training, "
                    "loha and lokr make small files, oft turns weights without stretching them.",
                    False,
                ),
                field.number(
                    "text_encoder_learning_rate",
                    "Trains the text encoders (CLIP-L, CLIP-G) too, at this rate (kohya: text_encoder_lr): "
                    "a fifth of learning_rate is usual. 0 = off.",
                    1e-7,
                    False,
                ),
                field.choice(
                    "base_precision",
                    BASE_PRECISIONS,
                    "fp8 holds the base model's linear layers in 8 bit while it is trained on (kohya: fp8_base), half "
                    "the memory of bf16. fp8 matmul multiplies in 8 bit too: fastest for transformers such as Flux, on "
                    "RTX 40 and later, with a little noise in the gradients. Checkpoints that are quantised already "
                    "stay as they are in any case.",
                ),
            ],
            outputs=[KilnConfig.Output(display_name="config", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, preset: str, **values: Any) -> io.NodeOutput:
        chosen = present(values)
        if "sample_prompts" in chosen:
            lines = (line.strip() for line in chosen["sample_prompts"].splitlines())
            chosen["sample_prompts"] = tuple(dict.fromkeys(line for line in lines if line))
        return io.NodeOutput(LoRAConfig.of(**{**preset_values(preset), **chosen}))


def filled_in() -> dict[str, dict[str, Any]]:
    """What choosing each preset fills in on the page: a value for every field that one of them names."""
    named = {name for preset in PRESETS.values() for name in preset}
    return {
        preset: {name: value for name, value in preset_values(preset).items() if name in named} for preset in PRESETS
    }
