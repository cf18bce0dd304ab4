"""Fingerprints of models: equal ones compute the same."""

import hashlib
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase

from .tensors import base_weight, is_packed, plain

SAMPLES = 64
"""Values read of each weight."""


def model_fingerprint(model: Any) -> str | None:
    """A digest of a MODEL's, CLIP's or VAE's weights, patches and options.

    It covers names, shapes, types and an even sample of the values of every weight, the same for the patches on them
    with their strengths, a CLIP's options (clip skip), and the kind of device and arithmetic. Weights are read where
    they are, before patches are applied; meta tensors count by shape alone.

    Returns:
        None if the model carries code whose effect cannot be compared: hooks, wrappers, other objects.
    """
    patcher = getattr(model, "patcher", model)
    if _carries_code(patcher, model):
        return None
    digest = _Digest()
    digest.add(type(patcher.model).__qualname__, str(patcher.load_device.type), *_options(model))
    try:
        for name, weight in _weights(patcher):
            digest.add(name, weight)
        for patches in (patcher.patches, patcher.object_patches):
            digest.add({key: patches[key] for key in sorted(patches)})
    except TypeError:
        return None
    return digest.text()


def _weights(patcher: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """Every parameter and buffer by name, without patches."""
    for name, parameter in patcher.model.named_parameters():
        yield name, base_weight(patcher, name, parameter)
    for name, buffer in patcher.model.named_buffers():
        yield name, patcher.backup_buffers.get(name, buffer)


def _options(model: Any) -> list[Any]:
    """Options by which a CLIP or VAE computes, besides its weights."""
    names = ("layer_idx", "tokenizer_options", "use_clip_schedule", "vae_dtype", "latent_channels", "latent_dim")
    options = {name: getattr(model, name) for name in names if hasattr(model, name)}
    return [type(getattr(model, "tokenizer", None)).__qualname__, {k: _plain(v) for k, v in options.items()}]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, torch.dtype) else value


def _carries_code(patcher: Any, model: Any) -> bool:
    return bool(
        patcher.weight_wrapper_patches
        or patcher.injections
        or patcher.hook_patches
        or patcher.forced_hooks
        or any(patcher.wrappers.values())
        or getattr(model, "apply_hooks_to_conds", None)
    )


class _Digest:
    """Collects a description and samples of tensors, and hashes them together."""

    def __init__(self) -> None:
        self._words = hashlib.sha256()
        self._samples: list[torch.Tensor] = []

    def add(self, *parts: Any) -> None:
        """Adds values, nested or not.

        Raises:
            TypeError: a value whose content cannot be compared.
        """
        for part in parts:
            self._add(part)

    def text(self) -> str:
        """The digest in hexadecimal."""
        by_device: dict[torch.device, list[int]] = {}
        for index, sample in enumerate(self._samples):
            by_device.setdefault(sample.device, []).append(index)
        content: dict[int, torch.Tensor] = {}
        for indices in by_device.values():  # one copy per device; the order does not depend on where weights are
            samples = [self._samples[index] for index in indices]
            parts = torch.cat(samples).cpu().split([sample.numel() for sample in samples])
            content.update(zip(indices, parts, strict=True))
        for index in range(len(self._samples)):
            self._words.update(content[index].numpy().tobytes())
        return self._words.hexdigest()

    def _add(self, part: Any) -> None:
        if isinstance(part, torch.Tensor):
            self._add_tensor(part)
        elif isinstance(part, WeightAdapterBase):
            self._say(type(part).__name__)
            self._add(part.weights)
        elif isinstance(part, dict):
            self._say(f"dict {len(part)}")
            self.add(*(item for pair in part.items() for item in pair))
        elif isinstance(part, list | tuple):
            self._say(f"list {len(part)}")
            self.add(*part)
        elif part is None or isinstance(part, str | int | float | bool | torch.Size):
            self._say(f"{type(part).__name__} {part}")
        elif isinstance(part, torch.dtype | torch.device):
            self._say(str(part))
        elif isinstance(part, FunctionType) and not part.__closure__ and part.__qualname__.isidentifier():
            self._say(f"function {part.__module__}.{part.__qualname__}")
        else:
            raise TypeError(f"{type(part).__name__} cannot be compared")

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        quantised = getattr(tensor, "_qdata", None)
        if quantised is not None:  # the host's quantised weights: integers and scales
            self._say(type(tensor).__name__)
            self.add(quantised, vars(getattr(tensor, "_params")))  # noqa: B009
            return
        if is_packed(tensor):  # patches on it may be another MODEL's: the patcher's are added anyway
            self._say(f"{type(tensor).__name__}")
            self.add({name: value for name, value in sorted(vars(tensor).items()) if name != "patches"})
        tensor = plain(tensor)
        self._say(f"{tuple(tensor.shape)} {tensor.dtype}")
        if tensor.is_meta or not tensor.numel():
            return
        with torch.inference_mode():  # the host's weights are inference tensors, or become so when moved
            flat = tensor.detach().reshape(-1)
            step = (flat.numel() // SAMPLES) | 1  # odd, so that samples fall in different columns of a matrix
            sample = flat[::step].clone().view(torch.uint8)
        self._samples.append(sample)

    def _say(self, word: str) -> None:
        self._words.update(f"{len(word)}:{word}".encode())
