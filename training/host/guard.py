"""Code of other nodes in a model's forward pass: called so that gradients stay right, and named where they cannot."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from ..basics.errors import InputError, raise_if_any
from ..basics.memory import is_memory_full
from .page import Interrupted, first_line

HAND_OVER = "Give Train LoRA the MODEL from before the node that adds it."
PASSES_ON = (InputError, Interrupted)
"""Exceptions that are not the code's fault, beside those that say that memory is full."""


def name_of(code: Any) -> str:
    """What a person can look for: the qualified name of a function, or of an object's class, and its module."""
    code = getattr(code, "func", code)  # of a partial
    named = code if hasattr(code, "__qualname__") else type(code)
    module = re.split(r"custom_nodes[/\\]", str(named.__module__))[-1]  # the host names a pack's modules by their path
    return f"{named.__qualname__.replace('.<locals>', '')} of {module}"


class Guarded:
    """A function of another node, as a twin calls it.

    Where gradients are computed the function gets copies of its arguments, since it may change in place what autograd
    or a recomputation needs as it was. What autograd saves in it is copied too, as it may be changed there later.

    Args:
        name: of the function, in messages.
        on_copies: False for a function around whole blocks, in which the copies would take too much memory.

    Raises, when it is called:
        InputError: the function raises, or a tensor comes back without its gradient.
    """

    def __init__(self, function: Callable[..., Any], name: str, on_copies: bool = True):
        self.function, self.name, self.on_copies = function, name, on_copies

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            with blamed(self.name):
                return self.function(*args, **kwargs)
        if not self.on_copies:
            with blamed(self.name):
                result = self.function(*args, **kwargs)
        else:
            copies = _Copies()
            given = [copies.of_members(each) if index == 0 else copies.of(each) for index, each in enumerate(args)]
            named = {key: copies.of(each) for key, each in kwargs.items()}
            with blamed(self.name), saved_tensors_hooks(_saved_copy, lambda tensor: tensor):
                result = self.function(*given, **named)
            if args and type(args[0]) is dict and isinstance(result, dict):
                result = copies.changed(args[0]) | result
        check_gradient(self.name, args, kwargs, result)
        return result


class _Copies:
    """Copies of tensors: one for each tensor, since a function may get one tensor as several arguments."""

    def __init__(self) -> None:
        self.made: dict[int, torch.Tensor] = {}

    def of(self, value: Any) -> Any:
        """Of a tensor; other values stay."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self.made:
            self.made[id(value)] = value.clone()
        return self.made[id(value)]

    def of_members(self, value: Any) -> Any:
        """Of a tensor, or of the tensors in a dict of arguments."""
        return {key: self.of(each) for key, each in value.items()} if type(value) is dict else self.of(value)

    def changed(self, originals: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The copies that were changed in place: such arguments need not be in a function's result."""
        copies = {key: self.made[id(each)] for key, each in originals.items() if id(each) in self.made}
        return {key: copy for key, copy in copies.items() if copy._version > 0}


def _saved_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if isinstance(tensor, nn.Parameter) else tensor.clone()


@contextlib.contextmanager
def blamed(name: str) -> Iterator[None]:
    """An exception in the context becomes an InputError that names the code it comes from."""
    try:
        yield
    except PASSES_ON:
        raise
    except Exception as error:
        if is_memory_full(error):
            raise
        what = f"{type(error).__name__}: {first_line(error)}"
        problem = f"its patch {name} does not work in training ({what}). {HAND_OVER}"
        raise InputError("MODEL", [problem]) from error


def check_gradient(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
    """Refuses code that gives a tensor back without the gradient that it came with.

    Raises:
        InputError: names the code.
    """
    if any(_needs_gradient(given) and _has_none(back) for given, back in _pairs(args, kwargs, result)):
        problem = f"its patch {name} gives back what layers cannot be trained through (no gradient passes). {HAND_OVER}"
        raise_if_any("MODEL", [problem])


def _pairs(args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Iterator[tuple[Any, Any]]:
    """What a function got, and what it gave back in its place."""
    if isinstance(result, torch.Tensor):
        yield next(filter(_needs_gradient, [*args, *kwargs.values()]), None), result
    elif isinstance(result, dict):
        given = args[0] if args and type(args[0]) is dict else {**dict(zip("qkv", args, strict=False)), **kwargs}
        yield from ((given[key], back) for key, back in result.items() if key in given)
    elif isinstance(result, tuple | list):
        yield from zip([*args, *kwargs.values()], result, strict=False)


def _needs_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _has_none(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.requires_grad
