"""Fingerprints and identities of models: equal ones compute the same."""

import hashlib
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from comfy.weight_adapter.base import WeightAdapterBase
from torch import nn

from .contents import additions, value_digest
from .tensors import base_weight, is_packed, plain

SAMPLES = 64
"""Values read of each weight."""
POOLING = "text_projection.weight"
"""End of the name of a text encoder's weight that makes the pooled embedding. SD1.5's checkpoints lack it, and the host
leaves there what its memory held before."""


def model_fingerprint(model: Any, but: str | None = None) -> str | None:
    """A digest of a MODEL's, CLIP's or VAE's weights, patches and options.

    It covers names, shapes, types and an even sample of the values of every weight, the same for the patches on them
    with their strengths, a CLIP's options (clip skip), and the kind of device and arithmetic. Weights are read where
    they are, before patches are applied; meta tensors count by shape alone.

    Args:
        but: weights whose name ends so do not count.

    Returns:
        None if the model carries code whose effect cannot be compared: hooks, wrappers, other objects.
    """
    patcher = getattr(model, "patcher", model)
    if _carries_code(patcher, model):
        return None
    try:
        digest = _weights_digest(patcher, model, but)
        for patches in (patcher.patches, patcher.object_patches):
            digest.add({key: patches[key] for key in sorted(patches)})
    except TypeError:
        return None
    return digest.text()


def model_identity(model: Any, graph: str = "", but: str | None = None) -> str:
    """What a MODEL, CLIP or VAE is known by from one run to the next: its fingerprint, and the code that is on it.

    It covers all that nodes put on a model: patches and options with the settings inside them, object patches,
    wrappers, injections and hooks. Where that is code, the graph that made the model counts as well: a setting may lie
    where no reader looks. What cannot be told equals nothing but itself, and what the same graph makes of the same
    weights.

    Args:
        graph: a digest of the graph that made the model; empty: it is not known.
        but: weights whose name ends so do not count.
    """
    fingerprint = model_fingerprint(model, but)
    if fingerprint is not None:
        return fingerprint
    patcher = getattr(model, "patcher", model)
    names = {id(module): name for name, module in _modules(patcher)}
    code = {"additions": additions(patcher), "hooks": getattr(model, "apply_hooks_to_conds", None)}
    digest = _weights_digest(patcher, model, but, lambda weight: value_digest(weight, graph=graph))
    digest.add(value_digest(code, names, graph), graph)
    return digest.text()


def sampling_identity(model: Any, graph: str = "") -> str:
    """What a MODEL's sampling is known by: its classes, noise levels and settings (prediction, shift).

    Args:
        graph: as of `model_identity`.
    """
    return value_digest(model.get_model_object("model_sampling"), graph=graph)


def _weights_digest(
    patcher: Any, model: Any, but: str | None, otherwise: Callable[[torch.Tensor], str] | None = None
) -> "_Digest":
    """Class, device, options and weights.

    Args:
        but: weights whose name ends so do not count.
        otherwise: describes a weight that cannot be compared.

    Raises:
        TypeError: a weight cannot be compared, and `otherwise` is None.
    """
    digest = _Digest()
    digest.add(type(patcher.model).__qualname__, str(patcher.load_device.type), *_options(model))
    for name, weight in _weights(patcher):
        if but is not None and name.endswith(but):
            continue
        try:
            digest.add(name, weight)
        except TypeError:
            if otherwise is None:
                raise
            digest.add(otherwise(weight))
    return digest


def _modules(patcher: Any) -> list[tuple[str, nn.Module]]:
    """Every module by name, each once. Clones share one model: another clone's object patches may be on it."""
    originals = {name: each for name, each in patcher.object_patches_backup.items() if isinstance(each, nn.Module)}
    found: dict[int, tuple[str, nn.Module]] = {}

    def collect(name: str, module: nn.Module) -> None:
        if id(module) not in found:
            found[id(module)] = (name, module)
            for child, each in module._modules.items():
                path = f"{name}.{child}" if name else child
                if each is not None:
                    collect(path, originals.get(path, each))

    collect("", patcher.model)
    return list(found.values())


def _weights(patcher: Any) -> Iterable[tuple[str, torch.Tensor]]:
    """Every parameter, then every buffer, by name, each once, without patches."""
    modules, seen = _modules(patcher), set()
    for kind in ("_parameters", "_buffers"):
        for prefix, module in modules:
            for name, tensor in getattr(module, kind).items():
                if tensor is None or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                path = f"{prefix}.{name}" if prefix else name
                if kind == "_buffers":
                    yield path, patcher.backup_buffers.get(path, tensor)
                else:
                    yield path, base_weight(patcher, path, tensor)


def _options(model: Any) -> list[Any]:
    """Options by which a CLIP or VAE computes, besides its weights."""
    names = ("layer_idx", "tokenizer_options", "use_clip_schedule", "vae_dtype", "latent_channels", "latent_dim")
    options = {name: getattr(model, name) for name in names if hasattr(model, name)}
    return [type(getattr(model, "tokenizer", None)).__qualname__, {k: _plain(v) for k, v in options.items()}]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, torch.dtype) else value


def _carries_code(patcher: Any, model: Any) -> bool:
    code = additions(patcher).keys() - {"patches", "object_patches"}
    return bool(code or getattr(model, "apply_hooks_to_conds", None))


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
