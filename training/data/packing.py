"""Values as bytes: tensors as safetensors, the containers around them as JSON in its header."""

import json
from typing import Any

import torch
from safetensors.torch import load, save


def pack(value: Any) -> bytes:
    """A value as bytes.

    Raises:
        TypeError: something other than tensors, lists, tuples, dicts with text keys, text, numbers, booleans and None.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_structure(value, tensors))
    return save(tensors, {"structure": structure})


def unpack(blob: bytes) -> Any:
    """The inverse of `pack`."""
    length = int.from_bytes(blob[:8], "little")
    structure = json.loads(blob[8 : 8 + length])["__metadata__"]["structure"]
    return _value(json.loads(structure), load(blob))


def _structure(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value as JSON, where each container and tensor is [its type, its content]; tensors are added to `tensors`."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return ["tensor", name]
    if type(value) in (list, tuple):
        return [type(value).__name__, [_structure(item, tensors) for item in value]]
    if type(value) is dict and all(type(key) is str for key in value):
        return ["dict", {key: _structure(item, tensors) for key, item in value.items()}]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise TypeError(f"{type(value).__name__} cannot be kept in the cache")


def _value(structure: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(structure, list):
        return structure
    kind, content = structure
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _value(item, tensors) for key, item in content.items()}
    items = [_value(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
