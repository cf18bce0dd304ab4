"""The content of values of any kind, as a digest: what other nodes put on a MODEL is code, with settings inside.

A function counts by its code, defaults and the variables that it encloses, an object by its class and attributes, a
module by its classes and weights. What cannot be read, and variables that functions change while they run, is unknown:
it equals nothing but itself and, where the graph that made it is known, what the same graph makes.
"""

import dis
import hashlib
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from functools import _lru_cache_wrapper as CachedFunction
from functools import cache, partial
from logging import Logger
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from .twin import LOADER_STATE

WHOLE, WHOLE_IN_CODE, SAMPLES = 2**16, 2**22, 4096
"""A weight of more than WHOLE values (another tensor in code: WHOLE_IN_CODE) counts by about SAMPLES of them."""
MOST_VALUES, DEEPEST = 10_000, 80
"""Code that holds more values, or deeper ones, is unknown."""
SIMPLE = (type(None), bool, int, float, complex, str, bytes)
PLAIN = (*SIMPLE, type(...), range, torch.dtype, torch.device, torch.Size, PurePath, np.generic)
TOOLS = (uuid.UUID, Logger, weakref.ref, type(threading.Lock()), type(threading.RLock()))
"""Classes of objects without settings: they count by their class."""
COMPILERS = ("torch._dynamo", "torch._inductor")
"""Packages whose objects hold compiled code; how it is compiled stands in MODEL's options."""
MODULE_STATE = (
    *vars(nn.Module()),
    *LOADER_STATE,
    *("device", "current_patcher", "current_weight_patches_uuid", "model_loaded_weight_memory", "model_lowvram"),
    *("model_offload_buffer_memory", "lowvram_patch_counter"),
)
"""Attributes of modules that torch and the host's loaders set; tensors and submodules are read otherwise."""
CLASS_STATE = {"__dict__", "__weakref__", "__doc__", "__static_attributes__", "__firstlineno__", "__module__"}
ADDITIONS = (
    *("patches", "object_patches", "weight_wrapper_patches", "model_options", "injections", "hook_patches"),
    *("forced_hooks", "wrappers", "callbacks", "additional_models"),
)
"""Attributes of the host's ModelPatcher that nodes fill."""

_remembered: dict[int, tuple[weakref.ref[Any], dict[str, bytes]]] = {}
"""id of an object or function -> (itself, its digest when it was first seen, by the graph that made it)."""


def additions(patcher: Any) -> dict[str, Any]:
    """What nodes have put on a ModelPatcher, by attribute; empty where there is nothing."""
    return _filled({name: getattr(patcher, name, None) for name in ADDITIONS})


def value_digest(value: Any, names: Mapping[int, str] | None = None, graph: str = "") -> str:
    """A digest of a value's content; equal ones do the same.

    Args:
        names: id of a module -> its name, for modules that are described elsewhere.
        graph: a digest of the graph that made the value; empty: it is not known.
    """
    walk = _Walk(names or {}, graph)
    walk.digest(value)  # finds the variables that functions assign to, also for the functions that only read them
    walk.begin(remembers=True)
    return walk.digest(value).hex()


class _TooLarge(Exception):
    """A value holds more values than are read."""


class _Walk:
    """One walk through a value and all that it holds."""

    def __init__(self, names: Mapping[int, str], graph: str):
        self._names, self._graph = names, graph
        self._assigned: set[int] = set()
        """ids of the cells of variables that a function assigns to"""
        self.begin(remembers=False)

    def begin(self, remembers: bool) -> None:
        self._open: list[int] = []
        """ids of the values that hold the present one, the outermost first"""
        self._known: dict[int, bytes] = {}
        self._kept: list[Any] = []
        """values that were made on the way: as long as they live, no other has their id"""
        self._end_of_code = 0
        """number of values at which the code that is read becomes too large; 0 outside of code"""
        self._open_modules = 0
        self._remembers = remembers
        self._has_unknown = False
        """whether the present value holds anything unknown"""
        self._unknown: set[int] = set()
        """ids of values that hold anything unknown"""

    def digest(self, value: Any) -> bytes:
        if isinstance(value, PLAIN):
            return _hashed(_name(type(value)), repr(value))
        key = id(value)
        if key in self._names:
            return _hashed("part", self._names[key])
        if key in self._known:
            self._has_unknown |= key in self._unknown
            return self._known[key]
        if key in self._open:
            return _hashed("again", str(len(self._open) - self._open.index(key)))
        self._kept.append(value)
        before, self._has_unknown = self._has_unknown, False
        is_code = not isinstance(value, dict | list | tuple | set | frozenset | torch.Tensor | nn.Module)
        if not is_code or self._end_of_code:
            result = self._opened(value)
        else:
            result = self._outermost(value)
        if self._has_unknown:
            self._unknown.add(key)
        self._has_unknown |= before
        self._known[key] = result
        return result

    def _outermost(self, value: Any) -> bytes:
        """The digest of an object or function that no other one holds.

        Running it may change what it holds. So, within one graph, its digest stays that of the first time.
        """
        found = _remembered.get(id(value))
        before = found[1] if found and found[0]() is value else {}
        if self._graph in before:
            return before[self._graph]
        self._end_of_code = len(self._kept) + MOST_VALUES
        try:
            result = self._opened(value)
        except _TooLarge:
            result = self.unknown(value)
        finally:
            self._end_of_code = 0
        # Without a graph nothing but its content tells that an object was changed; only what is unknown stays itself.
        if self._remembers and (self._graph or self._has_unknown):
            before[self._graph] = result
            key = id(value)
            try:
                _remembered[key] = (weakref.ref(value, lambda _: _remembered.pop(key, None)), before)
            except TypeError:
                pass  # an object that takes no weak reference: its id may become another's
        return result

    def _opened(self, value: Any) -> bytes:
        if self._end_of_code and len(self._kept) > self._end_of_code:
            raise _TooLarge
        if len(self._open) >= DEEPEST:
            return self.unknown(value)
        depth = len(self._open)
        self._open.append(id(value))
        try:
            parts = next(parts for kind, parts in KINDS if isinstance(value, kind))
            return _hashed(_name(type(value)), *parts(self, value))
        finally:
            del self._open[depth:]

    def unknown(self, value: Any) -> bytes:
        """Of a value whose content cannot be told."""
        self._has_unknown = True
        return _hashed("unknown", _name(type(value)), self._graph or uuid.uuid4().hex)

    def all(self, values: Iterable[Any]) -> list[bytes]:
        return [self.digest(value) for value in values]

    def attributes(self, values: Mapping[str, Any], but: Iterable[str] = ()) -> bytes:
        """The digest of attributes, whatever their order.

        Args:
            but: names that do not count.
        """
        return _hashed(*(part for name in sorted({*values} - {*but}) for part in (name, self.digest(values[name]))))

    # ---------------------------------------------------------------- kinds of values: what each holds

    def mapping(self, value: Any) -> list[bytes]:
        return sorted(_hashed(self.digest(key), self.digest(each)) for key, each in list(value.items()))

    def members(self, value: Any) -> list[bytes]:
        return sorted(self.all(value))

    def items(self, value: Any) -> list[bytes]:
        return self.all(value)

    def choice(self, value: Any) -> list[str]:
        return [value.name]

    def array(self, value: Any) -> list[Any]:
        if value.dtype.hasobject:
            return [self.unknown(value)]
        return [repr((value.shape, value.dtype)), np.ascontiguousarray(value).tobytes()]

    def tensor(self, value: Any) -> list[Any]:
        quantised = getattr(value, "_qdata", None)
        if quantised is not None:  # the host's quantised weights: integers and scales
            return [self.digest(quantised), self.attributes(vars(value._params))]
        is_plain = type(value) in (torch.Tensor, nn.Parameter)
        # Patches that a loader keeps on a shared weight may be another MODEL's; this one's are read from its patcher.
        own = {} if is_plain else {name: each for name, each in vars(value).items() if name != "patches"}
        about = repr((tuple(value.shape), value.dtype))
        if value.is_meta or not value.numel() or not self._remembers:
            return [about, self.attributes(own)]
        try:
            # Subclasses of other packs have operations of their own, and the host's weights are inference tensors.
            with torch.inference_mode(), torch._C.DisableTorchFunctionSubclass():
                flat = torch.Tensor.as_subclass(value, torch.Tensor).detach().reshape(-1)
                is_weight = self._open_modules or not self._end_of_code
                is_whole = flat.numel() <= (WHOLE if is_weight else WHOLE_IN_CODE)
                step = 1 if is_whole else (flat.numel() // SAMPLES) | 1
                content = flat[::step].cpu().contiguous().view(torch.uint8).numpy().tobytes()
        except (RuntimeError, TypeError, NotImplementedError):  # no dense memory
            return [self.unknown(value)]
        return [about, content, self.attributes(own)]

    def module(self, value: nn.Module) -> list[Any]:
        if type(value).__module__.startswith(COMPILERS):
            return [self.attributes(value._modules)]
        self._open_modules += 1
        try:
            return [
                self.attributes({**value._parameters, **value._buffers}),
                self.attributes(value._modules),
                self.attributes(vars(value), but=MODULE_STATE),
                self.kind(type(value)),
            ]
        finally:
            self._open_modules -= 1

    def patcher(self, value: Any) -> list[bytes]:
        return [self.digest(value.model), self.attributes(additions(value))]

    def function(self, value: FunctionType) -> list[Any]:
        code = value.__code__
        cells = dict(zip(code.co_freevars, value.__closure__ or (), strict=True))
        assigned = _assigned(code)
        self._assigned |= {id(cell) for name, cell in cells.items() if name in assigned}
        found = {name: value.__globals__[name] for name in _global_names(code) & value.__globals__.keys()}
        simple = {name: each for name, each in found.items() if name not in assigned and isinstance(each, SIMPLE)}
        return [
            f"{value.__module__}.{value.__qualname__}",
            self.digest(code),
            self.digest(value.__defaults__),
            self.digest(value.__kwdefaults__),
            self.attributes(cells),
            self.attributes(simple),
            *(self.unknown(value) for name in sorted(found.keys() & assigned)),
            self.attributes(vars(value)),
        ]

    def cell(self, value: CellType) -> list[bytes]:
        try:
            content = value.cell_contents
        except ValueError:  # not assigned yet
            return []
        return [self.unknown(value) if id(value) in self._assigned else self.digest(content)]

    def code(self, value: CodeType) -> list[Any]:
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        return [value.co_code, repr(names), *self.all(value.co_consts)]

    def method(self, value: MethodType) -> list[bytes]:
        return [self.digest(value.__func__), self.digest(value.__self__)]

    def builtin(self, value: BuiltinFunctionType) -> list[Any]:
        return [value.__qualname__, self.digest(value.__self__)]

    def partial(self, value: Any) -> list[bytes]:
        return [self.digest(value.func), self.digest(value.args), self.digest(value.keywords)]

    def kind(self, value: type) -> bytes:
        """A class by its name; one that a function has made by what it is made of, too."""
        if "<locals>" not in value.__qualname__:
            return _hashed(_name(value))
        descriptors = (GetSetDescriptorType, MemberDescriptorType)
        own = {name: each for name, each in vars(value).items() if not isinstance(each, descriptors)}
        return _hashed(_name(value), *map(self.kind, value.__bases__), self.attributes(own, but=CLASS_STATE))

    def kinds(self, value: type) -> list[bytes]:
        return [self.kind(value)]

    def name(self, value: Any) -> list[str]:
        return [getattr(value, "__name__", "")]

    def wrapped(self, value: Any) -> list[bytes]:
        return [self.digest(value.__wrapped__)]

    def accessors(self, value: property) -> list[bytes]:
        return [self.digest(value.fget)]

    def anything(self, value: Any) -> list[Any]:
        kind = type(value)
        if kind.__module__.startswith(COMPILERS):
            return []
        try:
            held = dict(object.__getattribute__(value, "__dict__"))
        except AttributeError:
            held = {}
        slots = [name for each in kind.__mro__ for name in _slots(each)]
        is_readable = kind.__new__ is object.__new__ or isinstance(kind.__new__, FunctionType)
        if not is_readable or not (hasattr(kind, "__dictoffset__") and kind.__dictoffset__ or slots or held):
            return [self.unknown(value)]  # written in C: what it holds cannot be seen
        held |= {name: getattr(value, name) for name in slots if hasattr(value, name)}
        return [self.kind(kind), self.attributes(held)]


KINDS: list[tuple[Any, Callable[[_Walk, Any], Iterable[Any]]]] = [
    (Enum, _Walk.choice),
    (Mapping, _Walk.mapping),
    (list | tuple, _Walk.items),
    (set | frozenset, _Walk.members),
    (torch.Tensor, _Walk.tensor),
    (np.ndarray, _Walk.array),
    (nn.Module, _Walk.module),
    (ModelPatcher, _Walk.patcher),
    (FunctionType, _Walk.function),
    (CellType, _Walk.cell),
    (CodeType, _Walk.code),
    (MethodType, _Walk.method),
    (BuiltinFunctionType, _Walk.builtin),
    (partial, _Walk.partial),
    (staticmethod | classmethod | CachedFunction, _Walk.wrapped),
    (property, _Walk.accessors),
    (type, _Walk.kinds),
    (ModuleType, _Walk.name),
    (TOOLS, _Walk.name),
    (object, _Walk.anything),
]
"""A kind of value -> what it holds; the first that fits counts."""


def _hashed(*parts: str | bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(f"{type(part).__name__} {len(content)}:".encode() + content)
    return digest.digest()


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _slots(kind: type) -> list[str]:
    found = vars(kind).get("__slots__", ())
    return [name for name in ([found] if isinstance(found, str) else found) if not name.startswith("__")]


@cache
def _assigned(code: CodeType) -> set[str]:
    """Names of enclosed and of global variables that a function, or one made in it, assigns to."""
    own = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars)
    }
    return own.union(
        *(_assigned(inner) - {*inner.co_cellvars} for inner in code.co_consts if isinstance(inner, CodeType))
    )


@cache
def _global_names(code: CodeType) -> set[str]:
    """Names that a function, or one made in it, may look up in its module."""
    inner = (_global_names(each) for each in code.co_consts if isinstance(each, CodeType))
    return {*code.co_names}.union(*inner)


def _filled(values: Any) -> Any:
    """Nested dictionaries without empty containers and None."""
    if not isinstance(values, dict):
        return values
    filled = {name: _filled(each) for name, each in values.items()}
    return {
        name: each
        for name, each in filled.items()
        if each is not None and not (isinstance(each, dict | list | set) and not each)
    }
