"""Optimizers, from torch and from well-kept libraries."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..basics.errors import InputError, raise_if_any
from ..config import LoRAConfig
from .ema import put_back

SOURCES = {
    "adamw": ("torch.optim", "AdamW"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "adafactor": ("transformers.optimization", "Adafactor"),
    "lion": ("pytorch_optimizer", "Lion"),
    "prodigy": ("pytorch_optimizer", "Prodigy"),
    "schedule_free": ("pytorch_optimizer", "ScheduleFreeAdamW"),
}
"""Where each optimizer of the config comes from: module, class.

AdamW: Loshchilov and Hutter, arXiv:1711.05101. 8-bit: Dettmers et al., arXiv:2110.02861. Adafactor: Shazeer and
Stern, arXiv:1804.04235. Lion: Chen et al., arXiv:2302.06675. Prodigy: Mishchenko and Defazio, arXiv:2306.06101.
Schedule-Free: Defazio et al., arXiv:2405.15682.
"""

OWN_FIELDS = {"params": "", "lr": "learning_rate", "weight_decay": "weight_decay"}
"""What an optimizer takes from elsewhere than optimizer_args: its name there, and the config's field."""

# torch's own Adafactor, and this one by default, scale the rate by the weights, which begin at zero here.
DEFAULTS: dict[str, dict[str, Any]] = {
    "adafactor": {"scale_parameter": False, "relative_step": False, "warmup_init": False},
}

FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")
"""Where torch has AdamW as one kernel."""

USUAL_NAMES = {"prodigy": {"decouple": "weight_decouple", "use_bias_correction": "bias_correction"}}
"""Settings that recipes know by the names of the optimizer's first package."""


def make_optimizer(config: LoRAConfig, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The config's optimizer, with its optimizer_args.

    Args:
        groups: each {"params": [...], "learning_rate": peak rate}; both stay in the optimizer's param_groups.

    Raises:
        InputError: its package is not installed; optimizer_args are not what it takes; Prodigy, which finds one rate
            for all, is to train groups at several.
    """
    optimization = config.optimization
    make = _optimizer_class(optimization.optimizer)
    options = _options(optimization.optimizer, make, optimization.optimizer_args)
    if optimization.optimizer == "adamw" and not options.keys() & {"fused", "foreach"}:
        options["fused"] = all(p.device.type in FUSED_DEVICES for group in groups for p in group["params"])
    rates = sorted({group["learning_rate"] for group in groups})
    if optimization.optimizer == "prodigy" and len(rates) > 1:
        asked = ", ".join(f"{rate:g}" for rate in rates)
        problem = (
            f"optimizer is 'prodigy', which finds one rate for all layers, but they ask for {asked}: set "
            "text_encoder_learning_rate to learning_rate and take lr= out of layer_rules, or choose adamw."
        )
        raise InputError("LoRA Config", [problem])
    own = [{**group, "lr": group["learning_rate"]} for group in groups]
    try:
        return make(own, lr=optimization.learning_rate, weight_decay=optimization.weight_decay, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if not optimization.optimizer_args.strip():
            raise
        problem = f"optimizer_args is {optimization.optimizer_args!r}, which {optimization.optimizer} refuses: {error}"
        raise InputError("LoRA Config", [problem]) from error


def check_optimizer(config: LoRAConfig, rates: Sequence[float]) -> None:
    """Refuses what `make_optimizer` would refuse, before there is anything to train.

    Args:
        rates: the groups' peak learning rates.

    Raises:
        InputError: as `make_optimizer`.
    """
    stand_in = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in rates]
    make_optimizer(config, [{"params": [p], "learning_rate": rate} for p, rate in zip(stand_in, rates, strict=True)])


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives each of the param_groups its peak "learning_rate" times the factor."""
    for group in optimizer.param_groups:
        rate = group["learning_rate"] * factor
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def make_capturable(optimizer: torch.optim.Optimizer) -> bool:
    """Lets a CUDA graph hold the optimizer's step, its learning rates on the device. Before its first step.

    Returns:
        Whether it can: torch's fused AdamW on a GPU.
    """
    if not (isinstance(optimizer, torch.optim.AdamW) and all(map(_is_fused_on_gpu, optimizer.param_groups))):
        return False
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
    return True


def is_capturable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `make_capturable` has made it so."""
    return all(group.get("capturable", False) and group.get("fused", False) for group in optimizer.param_groups)


def move(optimizer: Any, failed: torch.Tensor) -> None:
    """The optimizer's step, unless `failed` () is 1. A captured one looks at it on the device, without waiting."""
    if is_capturable(optimizer):
        optimizer.found_inf = failed  # what torch's GradScaler sets
        optimizer.step()
    elif not failed.item():
        optimizer.step()


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What the optimizer has gathered, as (tensors by name, plain JSON); what follows from the recipe is left out.

    Raises:
        TypeError: its state holds something that is neither a tensor nor plain.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {"state": {}, "groups": []}

    def put(name: str, value: Any, rest: dict[str, Any], key: str) -> None:
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif value is None or isinstance(value, bool | int | float | str | list | tuple):
            rest[key] = value
        else:
            raise TypeError(f"the optimizer keeps a {type(value).__name__}, which cannot be saved")

    found = optimizer.state_dict()
    for index, entries in found["state"].items():
        rest = plain["state"].setdefault(str(index), {})
        for key, value in entries.items():
            put(f"optimizer.state.{index}.{key}", value, rest, key)
    for index, group in enumerate(found["param_groups"]):
        plain["groups"].append({})
        for key, value in group.items():
            is_gathered = isinstance(value, torch.Tensor) or value != optimizer.defaults.get(key)
            if is_gathered and key not in _NOT_GATHERED:
                put(f"optimizer.groups.{index}.{key}", value, plain["groups"][-1], key)
    return tensors, plain


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]
) -> None:
    """Puts what `optimizer_state` gave into an optimizer; settings of the recipe stay as they are.

    Raises:
        ValueError, KeyError, RuntimeError: it is of another optimizer or of other parameters.
    """
    fresh = optimizer.state_dict()
    if len(plain["groups"]) != len(fresh["param_groups"]):
        raise ValueError("the checkpoint's optimizer has other groups of parameters")
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in plain["state"].items()}
    groups = [
        {**optimizer.defaults, **saved, **{key: own[key] for key in _NOT_GATHERED if key in own}}
        for own, saved in zip(fresh["param_groups"], plain["groups"], strict=True)
    ]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, kind, index, key = name.split(".", 3)
            owner = state.setdefault(int(index), {}) if kind == "state" else groups[int(index)]
            owner[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


_NOT_GATHERED = ("params", "lr", "learning_rate", "capturable", "fused", "foreach")
"""of a group: its rates follow from the step, and how it computes from the device"""


def _is_fused_on_gpu(group: Mapping[str, Any]) -> bool:
    return bool(group["fused"]) and all(parameter.is_cuda for parameter in group["params"])


def rate_factor(optimizer: torch.optim.Optimizer) -> float:
    """What the optimizer multiplies the learning rate by at its next step: Prodigy's d, else 1."""
    return optimizer.param_groups[0].get("d", 1.0)


@contextmanager
def for_use(optimizer: Any) -> Iterator[None]:
    """The weights as they are to be used: Schedule-Free's averages; afterwards as they were, bit for bit.

    Schedule-Free takes gradients between its average x and its fast iterate z, and x is what it has learned.
    """
    if not optimizer.param_groups[0].get("train_mode", False):
        yield
        return
    with put_back(parameter for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()


def _optimizer_class(name: str) -> Any:
    if name not in SOURCES:
        raise ValueError(f"optimizer {name!r} is not known")
    module, attribute = SOURCES[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        package = module.split(".")[0]
        problem = (
            f"optimizer is {name!r}, which needs the package {package} ({error}): "
            f"install it in ComfyUI's Python with `pip install {package}`, or choose adamw."
        )
        raise InputError("LoRA Config", [problem]) from error


def _options(name: str, make: Any, text: str) -> dict[str, Any]:
    """The settings in optimizer_args, as the optimizer takes them.

    Raises:
        InputError: with all settings that are ill-formed or that it does not take.
    """
    taken = {
        parameter.name: parameter.default
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in OWN_FIELDS
    }
    usual_names = USUAL_NAMES.get(name, {})
    options, problems = dict(DEFAULTS.get(name, {})), []
    for setting in re.split(r"\s+(?=\w+\s*=)", text.strip()) if text.strip() else []:
        key, _, written = (part.strip() for part in setting.partition("="))
        key = usual_names.get(key, key)
        if OWN_FIELDS.get(key):
            problems.append(f"optimizer_args sets {key}; it has its own field, {OWN_FIELDS[key]}: set it there.")
        elif key not in taken:
            listed = ", ".join(f"{known}={default}" for known, default in taken.items())
            problems.append(f"optimizer_args sets {key!r}, which {name} does not know; it takes: {listed}.")
        else:
            try:
                options[key] = _value(written)
            except ValueError:
                problems.append(
                    f"optimizer_args has {setting!r}; it must be name=value with a number, True, False or numbers "
                    "with commas between them, as in `betas=0.9,0.99 eps=1e-8`."
                )
    raise_if_any("LoRA Config", problems)
    return options


def _value(written: str) -> Any:
    """A number, a truth value or a tuple of numbers from its text.

    Raises:
        ValueError: it is something else.
    """
    try:
        value = ast.literal_eval(written)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(written) from error
    for part in value if isinstance(value, tuple) else (value,):
        if not isinstance(part, bool | int | float):
            raise ValueError(written)
    return value
