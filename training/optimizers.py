"""Optimizers, from torch and from well-kept libraries."""

from collections.abc import Iterable

import torch

from .problems import InputError


def make_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer by its name in the config.

    Raises:
        InputError: the optimizer needs a package that is not installed; it names the package.
    """
    parameters = list(parameters)
    match name:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
        case "adafactor":
            # torch's own scales the rate by the weights, which begin at zero here: nothing would be learned.
            from transformers.optimization import Adafactor

            options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
            return Adafactor(parameters, lr=learning_rate, weight_decay=weight_decay, **options)
        case "adamw8bit":
            try:
                from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                problem = (
                    "optimizer is 'adamw8bit', which needs the package bitsandbytes: "
                    "install it in ComfyUI's Python, or choose adamw."
                )
                raise InputError("LoRA Config", [problem]) from error
            return AdamW8bit(parameters, lr=learning_rate, weight_decay=weight_decay)
    raise ValueError(f"optimizer {name!r} is not known")
