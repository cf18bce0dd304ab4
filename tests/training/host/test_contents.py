"""The content of values of any kind: equal for what does the same, different for each setting inside."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from lora_kiln.training.host.contents import MOST_VALUES, value_digest
from torch import nn


class Kind(Enum):
    A = 1
    B = 2


@dataclass
class Settings:
    scale: float

    def patch(self, x: float) -> float:
        return self.scale * x


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale: float):
        self.scale = scale


def closure(scale: float) -> Callable:
    return lambda x: scale * x


def default(scale: float) -> Callable:
    return eval(f"lambda x, scale={scale}: scale * x")


def constant(scale: float) -> Callable:
    return eval(f"lambda x: {scale} * x")


def inner(scale: float) -> Callable:
    def outer(x: float) -> Any:
        return lambda: scale * x

    return outer


def global_value(scale: float) -> Callable:
    space = {"SCALE": scale}
    exec("def patch(x): return SCALE * x", space)
    return space["patch"]  # pyright: ignore[reportReturnType]


def local_class(scale: float) -> Any:
    class Local:
        def patch(self, x: float) -> float:
            return scale * x

    return Local()


def base_class(scale: float) -> Any:
    class Local(int if scale == 1.0 else float):  # pyright: ignore[reportGeneralTypeIssues]
        pass

    return Local


def with_attribute(scale: float) -> Callable:
    def patch(x: float) -> float:
        return x

    patch.scale = scale  # pyright: ignore[reportFunctionMemberAccess]
    return patch


def module(scale: float) -> nn.Module:
    made = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.no_grad():
        for each in made.parameters():
            each.fill_(scale)
    return made


def mask(scale: float) -> torch.Tensor:
    """White but for one pixel."""
    made = torch.ones(1, 200, 300)
    made[0, 17, 5] = scale
    return made


class Packed(torch.Tensor):
    """A tensor of another pack: it copies itself in its own way, and holds its format and others' patches."""

    kind: float
    patches: list

    def clone(self, *_: Any, **__: Any) -> Any:
        return self

    def detach(self) -> Any:
        raise AssertionError("its own operations are not asked")


def packed(scale: float) -> torch.Tensor:
    made = torch.arange(8, dtype=torch.uint8).as_subclass(Packed)
    made.kind, made.patches = scale, [object()]
    return made


def cyclic(scale: float) -> Any:
    made: dict[str, Any] = {"scale": scale}
    made["itself"] = [made]
    return made


MAKERS: list[Callable[[float], Any]] = [
    *(
        closure,
        default,
        constant,
        inner,
        global_value,
        local_class,
        base_class,
        with_attribute,
        module,
        mask,
        cyclic,
        packed,
    ),
    *(Settings, Slotted),
    lambda scale: Settings(scale).patch,
    lambda scale: partial(max, scale),
    lambda scale: cache(closure(scale)),
    lambda scale: {"a": [(1, {scale})], Kind.A: None},
    lambda scale: Kind.A if scale == 1.0 else Kind.B,
    lambda scale: np.full((3, 3), scale, dtype=np.float16),
    lambda scale: torch.full((2,), scale, dtype=torch.bfloat16),
    lambda scale: [].append if scale == 1.0 else [].extend,
    lambda scale: nn.Dropout(scale / 10),
]


@pytest.mark.parametrize("make", MAKERS)
def test_the_same_made_anew_is_the_same_and_another_setting_is_seen(make: Callable[[float], Any]) -> None:
    assert value_digest(make(1.0)) == value_digest(make(1.0))
    assert value_digest(make(1.0)) != value_digest(make(2.0))


def test_types_and_order_count_and_the_order_of_names_does_not() -> None:
    values = [
        1,
        1.0,
        True,
        "1",
        b"1",
        [1],
        (1,),
        {1},
        None,
        {"a": 1},
        torch.tensor(1),
        torch.tensor(1.0),
        [1, 2],
        [2, 1],
    ]
    assert len({value_digest(value) for value in values}) == len(values)
    assert value_digest({"a": 1, "b": 2}) == value_digest({"b": 2, "a": 1})


def counting() -> Callable:
    """A function that changes what it encloses, and another that reads it."""
    count = 0

    def patch() -> int:
        nonlocal count
        count += 1
        return count

    return patch


UNKNOWN: list[Callable[[], Any]] = [
    lambda: torch.Generator(),
    counting,
    lambda: partial(max, torch.Generator()),
    lambda: iter([1, 2, 3]),
    lambda: lambda values=[[n] for n in range(2 * MOST_VALUES)]: values,  # more than are read
]


@pytest.mark.parametrize("make", UNKNOWN)
def test_what_cannot_be_told_equals_only_what_the_same_graph_makes(make: Callable[[], Any]) -> None:
    values = [make(), make()]
    first, second = map(value_digest, values)
    assert first != second
    of_graph = [value_digest(value, graph=graph) for value in values for graph in "ab"]
    assert of_graph[0] == of_graph[2] != of_graph[1] == of_graph[3]
    assert first not in of_graph


def test_a_patch_that_has_run_is_still_the_same() -> None:
    patch, settings = counting(), Settings(1.0)
    before = value_digest([patch, settings.patch]), value_digest({"a": settings}, graph="a")
    assert patch() == 1
    settings.scale = 2.0
    method = value_digest({"a": settings}, graph="a")
    assert method == before[1]
    assert value_digest({"a": settings}, graph="b") != before[1]
    assert value_digest([patch]) == value_digest([patch]) != value_digest([counting()])


def test_without_a_graph_an_object_counts_by_what_it_holds_now() -> None:
    settings = Settings(1.0)
    before = value_digest({"a": settings})
    settings.scale = 3.0
    assert value_digest({"a": settings}) != before


def test_tools_without_settings_do_not_count() -> None:
    assert value_digest([threading.Lock()]) == value_digest([threading.Lock()])


def test_modules_that_are_described_elsewhere_count_by_name() -> None:
    one, other = module(1.0), module(2.0)
    names = {id(one): "net", id(other): "net"}
    assert value_digest(closure(one), names) == value_digest(closure(other), names)  # pyright: ignore[reportArgumentType]
    assert value_digest([one], names) != value_digest([one], {id(one): "other"})
