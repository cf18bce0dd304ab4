"""LoRAs of any key format: read from files, as adapters for training, and under keys that the host's loader knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..adapters import Adapter, adapter_from_tensors
from ..basics.errors import InputError
from ..basics.numbers import is_finite
from ..basics.tensor_files import load_tensors
from ..host import LayerNames, in_the_hosts_spelling
from .describe import KINDS
from .header import SUBJECT, json_object, read_header
from .keys import ALPHA, CHANGES, DOWN, MAGNITUDE, layers_of, split_key
from .lora import LoRAModel

FACTORS = ("lora_", "hada_", "lokr_", "oft_", "a1.", "a2.", "b1.", "b2.")
"""Starts of the entries that are matrices, or kernels with up to three spatial dimensions."""
WITHOUT_SCALE = ("lokr_w1", "lokr_w2", *CHANGES)
"""Entries that alpha has no effect on; LoKr's factors that are products have other names."""
NUMBERS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
WHOLE_NUMBERS = ("I64", "I32")
"""Some files have alphas and shapes of these types."""


@dataclass
class FoundAdapters:
    """The parts of a LoRA, as far as they belong to a model."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    """Trainable adapters, by state-dict key of the base weight."""
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    """Tensors that cannot be trained, under kohya's names."""
    unknown: list[str] = field(default_factory=list)
    """Keys that name no layer of the model or do not fit it."""


def read_adapters(lora: Mapping[str, torch.Tensor], names: Mapping[str, LayerNames]) -> FoundAdapters:
    """The adapters of a LoRA with keys of kohya, the host, peft or older diffusers.

    Args:
        names: layer names of the model (and text encoders), by state-dict key.
    """
    layers = layers_of(lora, names.values())
    keys = {layer.kohya: key for key, layer in names.items()}
    found = FoundAdapters(kept=dict(layers.parts), unknown=layers.unknown)
    for kohya, entries in layers.entries.items():
        trainable = {entry: tensor for entry, tensor in entries.items() if entry not in CHANGES}
        adapter = adapter_from_tensors(trainable) if trainable else None
        if adapter is not None:
            found.adapters[keys[kohya]] = adapter
        kept = entries if adapter is None else {entry: entries[entry] for entry in entries if entry in CHANGES}
        found.kept.update({f"{kohya}.{entry}": tensor for entry, tensor in kept.items()})
    return found


def for_host(lora: Mapping[str, torch.Tensor], names: Mapping[str, LayerNames]) -> dict[str, torch.Tensor]:
    """A LoRA under kohya's keys, which the host's loader knows for every model; unknown keys are kept.

    Needed because the host does not know peft's names for the layers of UNets.
    """
    layers = layers_of(lora, names.values())
    known = {f"{kohya}.{entry}": tensor for kohya, each in layers.entries.items() for entry, tensor in each.items()}
    return {**known, **layers.parts, **{key: lora[key] for key in layers.unknown}}


def not_of_model(lora: Mapping[str, torch.Tensor], names: Mapping[str, LayerNames]) -> list[str]:
    """The keys of a LoRA that name no layer of the model or do not fit it: the host's loader leaves them out."""
    return layers_of(lora, names.values()).unknown


def read_lora_file(path: Path) -> LoRAModel:
    """Reads a LoRA file with its metadata; keys and number formats are kept.

    Raises:
        InputError: it is not a safetensors file, is cut short, or holds no LoRA.
    """
    header = read_header(path)
    unsupported = {
        key: dtype
        for key, (dtype, dimensions) in header.tensors.items()
        if dtype not in (*NUMBERS, *(WHOLE_NUMBERS if dimensions < 2 else ()))
    }
    if unsupported:
        key, dtype = next(iter(unsupported.items()))
        problem = (
            f"{path.name} holds numbers of type {dtype} ({key}): a LoRA has fp32, fp16 or bf16. Choose another file."
        )
        raise InputError(SUBJECT, [problem])
    if not any((parts := split_key(key)) and parts[1] in KINDS for key in header.tensors):
        problem = (
            f"{path.name} holds no LoRA: its {len(header.tensors)} tensors have other names"
            + (f", such as {next(iter(header.tensors))}" if header.tensors else "")
            + ". Choose another file."
        )
        raise InputError(SUBJECT, [problem])
    try:
        tensors = in_the_hosts_spelling(load_tensors(path))
    except (OSError, SafetensorError) as error:
        raise InputError(SUBJECT, [f"{path.name} cannot be read ({error}). Copy or download it again."]) from error
    idle = _without_effect(tensors)
    wrong = {key: _wrong_with(key, tensor) for key, tensor in tensors.items() if key not in idle}
    if broken := [f"{key} {what}" for key, what in wrong.items() if what]:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise InputError(SUBJECT, [f"{path.name} is broken: {broken[0]}{more}. Choose another file."])
    return LoRAModel(_with_peft_alphas(tensors, header.metadata), header.metadata, path.stem)


def _without_effect(lora: Mapping[str, torch.Tensor]) -> set[str]:
    """Keys of alphas that scale nothing: of LoKr with whole factors, of direct changes, or of no adapter at all.

    LyCORIS asks for whole factors by a rank of 9999999999 and writes it as alpha, which fp16 holds as infinity.
    """
    layers: dict[str, dict[str, str]] = {}
    for key in lora:
        if parts := split_key(key):
            layers.setdefault(parts[0], {})[parts[1]] = key
    return {keys[ALPHA] for keys in layers.values() if ALPHA in keys and set(keys) <= {ALPHA, *WITHOUT_SCALE}}


def _wrong_with(key: str, tensor: torch.Tensor) -> str:
    """Why a tensor is not valid for its key; empty if it is."""
    entry = (split_key(key) or ("", ""))[1]
    if entry and not tensor.numel():
        return "holds no number"
    if not bool(tensor.float().isfinite().all()):
        return "holds numbers that are not finite"
    if entry == ALPHA and tensor.numel() != 1:
        return f"holds {tensor.numel()} numbers, and an alpha is one"
    if entry.startswith(FACTORS) and entry != MAGNITUDE and not 2 <= tensor.dim() <= 5:
        return f"has the shape {list(tensor.shape)}, which no factor has"
    return ""


def _with_peft_alphas(tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Adds the alphas that peft's users store in the metadata; alphas among the tensors take precedence.

    diffusers stores them as JSON in lora_adapter_metadata, by component (`unet.lora_alpha`); others write lora_alpha
    there, or right into the metadata, for the whole file.
    """
    settings = {"lora_alpha": _number(metadata.get("lora_alpha", ""))} | json_object(
        metadata.get("lora_adapter_metadata", "")
    )
    alphas = {}
    for key, tensor in tensors.items():
        layer, entry = split_key(key) or ("", "")
        if entry != DOWN or ".lora_A" not in key:
            continue
        component, _, name = layer.partition(".")
        own = {
            setting: settings.get(f"{component}.{setting}", settings.get(setting))
            for setting in ("lora_alpha", "alpha_pattern", "use_rslora")
        }
        alpha, pattern = own["lora_alpha"], own["alpha_pattern"]
        if isinstance(pattern, dict):
            alpha = pattern.get(name, pattern.get(layer, alpha))
        if not is_finite(alpha):
            continue
        alpha = float(alpha)
        rank = tensor.shape[0]
        if own["use_rslora"]:
            alpha *= rank**0.5
        if alpha != rank:
            alphas[f"{layer}.{ALPHA}"] = torch.tensor(alpha)
    return {**alphas, **tensors}


def _number(text: str) -> float | None:
    """A number in a file's metadata; None if it is anything else."""
    try:
        return float(text)
    except ValueError:
        return None
