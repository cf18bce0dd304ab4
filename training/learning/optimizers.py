"""Optimizers, from torch and from well-kept libraries: made, stepped, and saved in checkpoints."""

import ast
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..basics.errors import InputError, raise_if_any
from ..basics.memory import is_memory_full
from ..basics.name_values import cut_settings
from ..config import OptimizationConfig, OptimizerKind
from .ema import put_back

LONGEST_VALUE = 200
"""characters of an argument's value"""
FIELD_OF = {"params": "", "lr": "learning_rate", "weight_decay": "weight_decay"}
"""Arguments of an optimizer that optimizer_args may not set -> the config's field that sets them; empty: none."""

FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")
"""Types of devices on which torch has AdamW as one kernel."""
NOT_IN_CHECKPOINTS = ("params", "lr", "learning_rate", "capturable", "fused", "foreach")
"""Entries of a parameter group that a checkpoint leaves out: they follow from the step or the device."""


def make_optimizer(optimization: OptimizationConfig, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """The config's optimizer, with its optimizer_args.

    Args:
        groups: each {"params": [...], "learning_rate": peak rate}; both stay in the optimizer's param_groups.

    Raises:
        InputError: its package is not installed; optimizer_args has arguments that the optimizer does not take; the
            groups have several rates, and the optimizer finds one rate for all.
    """
    kind = optimization.optimizer_kind
    optimizer_class = _class_of(kind)
    arguments = _arguments(kind, optimizer_class, optimization.optimizer_args)
    if kind.takes_fused and not arguments.keys() & {"fused", "foreach"}:
        arguments["fused"] = all(p.device.type in FUSED_DEVICES for group in groups for p in group["params"])
    rates = sorted({group["learning_rate"] for group in groups})
    if kind.finds_rate and len(rates) > 1:
        asked = ", ".join(f"{rate:g}" for rate in rates)
        problem = (
            f"optimizer is {kind.name!r}, which finds one rate for all layers, but they ask for {asked}: set "
            "text_encoder_learning_rate to learning_rate and take lr= out of layer_rules, or choose adamw."
        )
        raise InputError("LoRA Config", [problem])
    param_groups = [{**group, "lr": group["learning_rate"]} for group in groups]
    try:
        return optimizer_class(
            param_groups, lr=optimization.learning_rate, weight_decay=optimization.weight_decay, **arguments
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        if not optimization.optimizer_args.strip() or is_memory_full(error):
            raise
        problem = f"optimizer_args is {optimization.optimizer_args!r}, which {kind.name} refuses: {error}"
        raise InputError("LoRA Config", [problem]) from error


def check_optimizer(optimization: OptimizationConfig, rates: Sequence[float]) -> None:
    """Refuses what `make_optimizer` would refuse, before there are parameters.

    Args:
        rates: peak learning rate of each parameter group.

    Raises:
        InputError: as `make_optimizer`.
    """
    parameters = [torch.nn.Parameter(torch.zeros(2, 2)) for _ in rates]
    make_optimizer(
        optimization,
        [{"params": [each], "learning_rate": rate} for each, rate in zip(parameters, rates, strict=True)],
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets the rate of each parameter group to its peak "learning_rate" times the factor."""
    for group in optimizer.param_groups:
        rate = group["learning_rate"] * factor
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def make_capturable(optimizer: torch.optim.Optimizer) -> bool:
    """Makes the optimizer's step capturable in a CUDA graph: its learning rates move to the device.

    Call it before the optimizer's first step.

    Returns:
        Whether the step can be captured: that of torch's fused AdamW on a GPU can.
    """
    if not (isinstance(optimizer, torch.optim.AdamW) and all(map(_is_fused_on_gpu, optimizer.param_groups))):
        return False
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=group["params"][0].device)
    return True


def is_capturable(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `make_capturable` has made the optimizer's step capturable."""
    return all(group.get("capturable", False) and group.get("fused", False) for group in optimizer.param_groups)


def step_unless(
    optimizer: Any, failed: torch.Tensor, parameters: Sequence[torch.nn.Parameter], goes_on: bool = True
) -> None:
    """Makes the optimizer's step unless `failed` () is 1, which a capturable step reads on the device.

    Args:
        parameters: those of the optimizer, or the flat parameters that they are views of.
        goes_on: steps may follow a failed one. If not, nothing waits for the device: a failed step leaves the
            parameters and their averages as they are, but not what else the optimizer has gathered.
    """
    if is_capturable(optimizer):
        optimizer.found_inf = failed  # what torch's GradScaler sets
        optimizer.step()
    elif goes_on or not failed.is_cuda:
        if not failed.item():
            optimizer.step()
    else:
        _step_or_undo(optimizer, failed, parameters)


@torch.no_grad()
def _step_or_undo(
    optimizer: torch.optim.Optimizer, failed: torch.Tensor, parameters: Sequence[torch.nn.Parameter]
) -> None:
    has_failed = {device: (failed > 0).to(device) for device in {each.device for each in parameters}}
    averaged = [state["z"] for state in optimizer.state.values() if "z" in state]  # Schedule-Free's
    before = [each.detach().clone() for each in (*parameters, *averaged)]
    for each in parameters:  # not a number may reach the optimizer's averages
        if each.grad is not None:
            each.grad.masked_fill_(has_failed[each.device], 0.0)
    optimizer.step()
    for each, old in zip((*parameters, *averaged), before, strict=True):
        each.copy_(torch.where(has_failed[each.device], old, each))


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimizer's state without the settings of the recipe, as (tensors by name, plain JSON).

    Raises:
        TypeError: the state holds a value that is neither a tensor nor plain JSON.
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
            has_changed = isinstance(value, torch.Tensor) or value != optimizer.defaults.get(key)
            if has_changed and key not in NOT_IN_CHECKPOINTS:
                put(f"optimizer.groups.{index}.{key}", value, plain["groups"][-1], key)
    return tensors, plain


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]
) -> None:
    """Loads a state from `optimizer_state`; the optimizer keeps its settings of the recipe.

    Raises:
        ValueError, KeyError, RuntimeError: the state is of another optimizer or of other parameters.
    """
    fresh = optimizer.state_dict()
    if len(plain["groups"]) != len(fresh["param_groups"]):
        raise ValueError("the checkpoint's optimizer has other groups of parameters")
    kept = {int(index): dict(entries) for index, entries in plain["state"].items()}
    state: dict[int, dict[str, Any]] = {index: entries for index, entries in kept.items() if entries}
    groups = [
        {**optimizer.defaults, **saved, **{key: own[key] for key in NOT_IN_CHECKPOINTS if key in own}}
        for own, saved in zip(fresh["param_groups"], plain["groups"], strict=True)
    ]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, kind, index, key = name.split(".", 3)
            owner = state.setdefault(int(index), {}) if kind == "state" else groups[int(index)]
            owner[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _is_fused_on_gpu(group: Mapping[str, Any]) -> bool:
    return bool(group["fused"]) and all(parameter.is_cuda for parameter in group["params"])


def rate_factor(optimizer: torch.optim.Optimizer) -> float | torch.Tensor:
    """The factor on the learning rate that the optimizer has found: Prodigy's d, on the device; 1 for all others."""
    return optimizer.param_groups[0].get("d", 1.0)


@contextmanager
def for_use(optimizer: Any) -> Iterator[None]:
    """Within the context the parameters hold the weights to use; afterwards those to train, bit for bit.

    The two differ for Schedule-Free: it takes gradients between its average x and its fast iterate z, and x is the
    result. For every other optimizer nothing changes.
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


def _class_of(kind: OptimizerKind) -> Any:
    try:
        module = importlib.import_module(kind.module)
        if kind.module_on_device:
            module = importlib.import_module(f".{kind.module_on_device}", __package__)
        return getattr(module, kind.class_name)
    except ImportError as error:
        package = kind.module.split(".")[0]
        problem = (
            f"optimizer is {kind.name!r}, which needs the package {package} ({error}): "
            f"install it in ComfyUI's Python with `pip install {package}`, or choose adamw."
        )
        raise InputError("LoRA Config", [problem]) from error


def _arguments(kind: OptimizerKind, optimizer_class: Any, text: str) -> dict[str, Any]:
    """Keyword arguments of the optimizer's class: the row's defaults, then those written in optimizer_args.

    Raises:
        InputError: with every argument that is ill-formed or that the class does not take.
    """
    taken = {
        parameter.name: parameter.default
        for parameter in inspect.signature(optimizer_class).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in FIELD_OF
    }
    arguments, problems = dict(kind.defaults), []
    for setting in cut_settings(text):
        key, _, written = (part.strip() for part in setting.partition("="))
        key = kind.argument_names.get(key, key)
        if FIELD_OF.get(key):
            problems.append(f"optimizer_args sets {key}; it has its own field, {FIELD_OF[key]}: set it there.")
        elif key not in taken:
            listed = ", ".join(f"{known}={default}" for known, default in taken.items())
            problems.append(f"optimizer_args sets {key!r:.200}, which {kind.name} does not know; it takes: {listed}.")
        else:
            try:
                arguments[key] = _value(written)
            except ValueError:
                problems.append(
                    f"optimizer_args has {setting!r:.200}; it must be name=value with a number, True, False or numbers "
                    "with commas between them, as in `betas=0.9,0.99 eps=1e-8`."
                )
    raise_if_any("LoRA Config", problems)
    return arguments


def _value(written: str) -> Any:
    """A number, a truth value or a tuple of them from its text.

    Raises:
        ValueError: the text is none of these.
    """
    if len(written) > LONGEST_VALUE:
        raise ValueError(written[:LONGEST_VALUE])
    try:
        value = ast.literal_eval(written)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(written) from error
    for part in value if isinstance(value, tuple) else (value,):
        if not isinstance(part, bool | int | float):
            raise ValueError(written)
    return value
