"""Loss Options: noise, timesteps and the loss."""

from typing import Any

from comfy_api.latest import io

from ..training.config import HUBER_SCHEDULES, LOSSES, TIMESTEP_SAMPLINGS, LoRAConfig
from .fields import Fields, not_default
from .types import CATEGORY, KilnConfig


class LossOptions(io.ComfyNode):
    """A recipe with another objective."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        field = Fields()
        return io.Schema(
            node_id="KilnLossOptions",
            display_name="Loss Options",
            category=CATEGORY,
            description="Goes between LoRA Config or Import Recipe and Train LoRA: the loss, the noise and the "
            "timesteps. A field at its default leaves what the config says.",
            search_aliases=[
                *("huber", "loss_type", "multires noise", "pyramid noise", "debiased", "ip_noise_gamma", "zsnr"),
                *("zero_terminal_snr", "timesteps", "sigmoid", "sigmoid_scale", "discrete_flow_shift", "flux_shift"),
            ],
            inputs=[
                KilnConfig.Input("config", tooltip="From LoRA Config or Import Recipe."),
                field.choice(
                    "loss",
                    LOSSES,
                    "l2 is the standard; huber and smooth_l1 mind bad pictures less (kohya: loss_type).",
                    False,
                ),
                field.number(
                    "huber_c",
                    "Where huber and smooth_l1 turn from square to linear: lower minds outliers less. "
                    "The lowest point under huber_schedule exponential and snr.",
                    0.01,
                    False,
                ),
                field.choice(
                    "huber_schedule",
                    HUBER_SCHEDULES,
                    "constant: huber_c everywhere. exponential, over the timesteps, and snr, over the noise: from 1 at "
                    "no noise down to huber_c at the most.",
                    False,
                ),
                field.switch(
                    "debiased_estimation",
                    "Weight the loss by 1 / sqrt(SNR): more weight on noisy steps, an alternative to min_snr_gamma.",
                    False,
                ),
                field.integer(
                    "multires_noise_iterations",
                    "Layers of coarser noise (pyramid noise), for contrast and composition: 6 to 10; 0 = off.",
                    False,
                ),
                field.number(
                    "multires_noise_discount",
                    "Strength of each coarser layer against the one before: 0.1 to 0.3 for few pictures, up to 0.8 for "
                    "many.",
                    0.05,
                    False,
                ),
                field.number(
                    "ip_noise_gamma",
                    "Input perturbation: the model sees a little more noise than it is asked "
                    "for. 0.05 to 0.1; 0 = off.",
                    0.01,
                    False,
                ),
                field.switch(
                    "zero_terminal_snr",
                    "The last timestep is pure noise (zsnr): for very dark and bright pictures, "
                    "with v-prediction models made for it.",
                    False,
                ),
                field.integer("min_timestep", "First timestep trained, of 1000.", False),
                field.integer(
                    "max_timestep",
                    "Timestep before which training ends, of 1000. Lower it for detail, "
                    "raise min_timestep for composition.",
                    False,
                ),
                field.choice(
                    "timestep_sampling",
                    TIMESTEP_SAMPLINGS,
                    "auto: uniform for SD1.5 and SDXL, shift for flow models. Kohya calls logit_normal sigmoid, "
                    "and resolution_shift flux_shift.",
                    False,
                ),
                field.number(
                    "logit_mean",
                    "Of logit_normal, shift and resolution_shift: above 0 = noisier.",
                    0.1,
                    False,
                ),
                field.number(
                    "logit_std",
                    "Of logit_normal, shift and resolution_shift: the spread (kohya: sigmoid_scale).",
                    0.1,
                    False,
                ),
                field.number(
                    "timestep_shift",
                    "Of shift (kohya: discrete_flow_shift): above 1 = noisier; 0 = the model's own.",
                    0.1,
                    False,
                ),
            ],
            outputs=[KilnConfig.Output(display_name="config", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, config: LoRAConfig, **values: Any) -> io.NodeOutput:
        return io.NodeOutput(config.changed(**not_default(values)))
