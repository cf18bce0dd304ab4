"""Adapter Options: the finer points of what is trained."""

from typing import Any

from comfy_api.latest import io

from ..training.config import LoRAConfig
from .fields import Fields, not_default
from .types import CATEGORY, KilnConfig


class AdapterOptions(io.ComfyNode):
    """A recipe with other adapters."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        field = Fields()
        return io.Schema(
            node_id="KilnAdapterOptions",
            display_name="Adapter Options",
            category=CATEGORY,
            description="Goes between LoRA Config or Import Recipe and Train LoRA: ranks of convolutions and of single "
            "layers, dropout. A field at its default leaves what the config says.",
            search_aliases=[
                *("locon", "dora", "loha", "lokr", "oft", "rslora", "lycoris", "block weights", "block_dims"),
                *("conv_dim", "conv_alpha", "factor", "network_dropout", "rank_dropout", "module_dropout"),
            ],
            inputs=[
                KilnConfig.Input("config", tooltip="From LoRA Config or Import Recipe."),
                field.integer(
                    "conv_rank",
                    "Rank of convolutions larger than 1x1 (kohya: conv_dim); 0 = as rank. "
                    "It needs targets that name convolutions.",
                    False,
                ),
                field.number(
                    "conv_alpha",
                    "Alpha of those convolutions: half of conv_rank, or the same, is usual; 0 = as alpha.",
                    0.5,
                    False,
                ),
                field.switch(
                    "rslora",
                    "Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones. "
                    "Lower alpha then: 1 to 4.",
                    False,
                ),
                field.integer(
                    "lokr_factor",
                    "LoKr: size of the small factor (kohya: factor), 4 to 16 for smaller files; -1 = as even as can "
                    "be.",
                    False,
                ),
                field.text(
                    "layer_rules",
                    "A rule a line: a pattern of layer names, then rank=, alpha= or lr= (a factor "
                    "on the learning rate). The last that fits a layer counts; rank=0 leaves it out.",
                    False,
                    "*attn2*  rank=32 alpha=16\n*output_blocks*  lr=0.5",
                ),
                field.number(
                    "dropout",
                    "Share of each adapter's inputs set to zero (kohya: network_dropout): 0.05 to 0.2 against "
                    "overfitting.",
                    0.01,
                    False,
                ),
                field.number(
                    "rank_dropout",
                    "Share of each adapter's ranks left out in a step (LoRA, DoRA, LoHa): 0.1 to 0.3 against "
                    "overfitting.",
                    0.01,
                    False,
                ),
                field.number(
                    "module_dropout",
                    "Share of the adapters left out in a step: 0.05 to 0.1 against overfitting.",
                    0.01,
                    False,
                ),
            ],
            outputs=[KilnConfig.Output(display_name="config", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, config: LoRAConfig, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(config.changed(**not_default(values)))
