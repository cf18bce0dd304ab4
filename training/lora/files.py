"""LoRA files of any form, read: as tensors with metadata, and as adapters that can be trained on."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..adapters import Adapter, adapter_from_tensors
from ..basics.errors import InputError
from ..basics.numbers import is_finite
from ..host import LayerNames
from .keys import ALPHA, CHANGES, DOWN, layers_of, split_key
from .lora import LoRAModel

SUBJECT = "LoRA file"
PARTIAL = "-partial"
"""ends the name of what a stopped run had learned"""
LARGEST_HEADER = 16 * 2**20
"""bytes; some thousand tensors and the longest metadata in use take a quarter of it"""
FACTORS = ("lora_", "hada_", "lokr_", "oft_", "a1.", "a2.", "b1.", "b2.")
"""Beginnings of entries that are matrices, or kernels of up to three dimensions."""
NUMBERS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
WHOLE_NUMBERS = ("I64", "I32")
"""of alphas and shapes, in some files"""
KINDS = {
    "dora_scale": "DoRA",
    "lora_mid.weight": "LoCon (Tucker)",
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "oft_blocks": "OFT",
    "a1.weight": "GLoRA",
    DOWN: "LoRA",
    **dict.fromkeys(CHANGES, "differences"),
}
"""Entry -> what people call it; the first that a layer has counts."""


@dataclass
class FoundAdapters:
    """What of a LoRA belongs to a model."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    """by state-dict key of the base weight"""
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    """what cannot be trained, under kohya's names"""
    unknown: list[str] = field(default_factory=list)
    """keys that name no layer of the model, or do not fit it"""


def read_adapters(lora: Mapping[str, torch.Tensor], names: Mapping[str, LayerNames]) -> FoundAdapters:
    """The adapters of a LoRA with keys of any form: kohya's, the host's, peft's, older diffusers'.

    Args:
        names: of the model (and text encoders), by state-dict key.
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
    """A LoRA under kohya's keys, which the host's loader knows for every model; foreign keys stay as they are.

    The host does not know peft's names for the layers of SD1.5 and SDXL.
    """
    layers = layers_of(lora, names.values())
    known = {f"{kohya}.{entry}": tensor for kohya, each in layers.entries.items() for entry, tensor in each.items()}
    return {**known, **layers.parts, **{key: lora[key] for key in layers.unknown}}


def read_lora_file(path: Path) -> LoRAModel:
    """A LoRA file with its metadata; keys and number formats stay as they are.

    Raises:
        InputError: no safetensors file, cut short, or no LoRA in it.
    """
    header = read_header(path)
    strange = {
        key: dtype
        for key, (dtype, dimensions) in header.tensors.items()
        if dtype not in (*NUMBERS, *(WHOLE_NUMBERS if dimensions < 2 else ()))
    }
    if strange:
        key, dtype = next(iter(strange.items()))
        problem = (
            f"{path.name} holds numbers of type {dtype} ({key}): a LoRA has fp32, fp16 or bf16. Choose another file."
        )
        raise InputError(SUBJECT, [problem])
    if not any((place := split_key(key)) and place[1] in KINDS for key in header.tensors):
        problem = (
            f"{path.name} holds no LoRA: its {len(header.tensors)} tensors have other names"
            + (f", such as {next(iter(header.tensors))}" if header.tensors else "")
            + ". Choose another file."
        )
        raise InputError(SUBJECT, [problem])
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(SUBJECT, [f"{path.name} cannot be read ({error}). Copy or download it again."]) from error
    if broken := [f"{key} {wrong}" for key, tensor in tensors.items() if (wrong := _wrong_with(key, tensor))]:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise InputError(SUBJECT, [f"{path.name} is broken: {broken[0]}{more}. Choose another file."])
    return LoRAModel(_with_peft_alphas(tensors, header.metadata), header.metadata, path.stem)


def earlier_files(lora: Mapping[str, torch.Tensor], files: Mapping[str, Path]) -> dict[int, Path]:
    """The files that the run of a LoRA wrote on its way to it: by step, the earliest first.

    They are known by what kohya's trainers and this one write: the name of the output, the run's session, the step.

    Args:
        files: where they may be, by the names that the host gives them.
    """
    own: Mapping[str, str] = getattr(lora, "metadata", {})
    name, session, last = own.get("ss_output_name"), own.get("ss_session_id"), step_of(own)
    if not name or not session or last is None:
        return {}
    found = {}
    first = _last_part(name)
    for file, path in files.items():
        if not _last_part(file).startswith(first):
            continue
        try:
            metadata = read_header(path).metadata
        except InputError:
            continue
        step = step_of(metadata)
        if metadata.get("ss_session_id") == session and step is not None and step < last:
            found[step] = path
    return dict(sorted(found.items()))


def delete_partials(folder: Path, name: str, session: str, but: Path | None = None) -> list[Path]:
    """Deletes the LoRAs that a run wrote because it was stopped; gives those that are gone.

    A file of that name which another run wrote, or a person has renamed, is none. What cannot be read stays.

    Args:
        name: of the run's LoRA, maybe with folders.
        session: id of the run.
        but: one that stays.
    """
    place = (folder / name).parent
    ours = re.compile(rf"{re.escape(_last_part(name))}-step\d+{PARTIAL}(_\d+)?\.safetensors")
    gone = []
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            if ours.fullmatch(path.name) and path != but:
                with suppress(InputError, OSError):
                    if read_header(path).metadata.get("ss_session_id") == session:
                        path.unlink()
                        gone.append(path)
    return gone


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def step_of(metadata: Mapping[str, str]) -> int | None:
    """The optimizer steps that a LoRA was trained for, by its file; None where it does not say."""
    text = metadata.get("ss_steps", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _wrong_with(key: str, tensor: torch.Tensor) -> str:
    """Why a tensor cannot be what its key says; empty where it can."""
    entry = (split_key(key) or ("", ""))[1]
    if entry and not tensor.numel():
        return "holds no number"
    if not bool(tensor.float().isfinite().all()):
        return "holds numbers that are not finite"
    if entry == ALPHA and tensor.numel() != 1:
        return f"holds {tensor.numel()} numbers, and an alpha is one"
    if entry.startswith(FACTORS) and not 2 <= tensor.dim() <= 5:
        return f"has the shape {list(tensor.shape)}, which no factor has"
    return ""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says before its tensors."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, int]]
    """key -> (number type as safetensors calls it, dimensions)"""


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's size; the tensors are not read.

    The format: eight bytes, little-endian, say how long the header is; then JSON; then the tensors.

    Raises:
        InputError: no safetensors file, cut short, or not readable.
    """
    again = "Choose another file, or copy or download it again."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 2 <= length <= min(LARGEST_HEADER, size - 8) else b""
    except OSError as error:
        raise InputError(SUBJECT, [f"{path.name} cannot be read ({error}). {again}"]) from error
    if 8 <= size < 8 + length <= 8 + LARGEST_HEADER:
        raise InputError(SUBJECT, [f"{path.name} is cut short. {again}"])
    try:
        content = json.loads(text.decode())
        metadata = {str(key): str(value) for key, value in content.pop("__metadata__", {}).items()}
        tensors = {key: (str(entry["dtype"]), len(entry["shape"])) for key, entry in content.items()}
        end = max((int(entry["data_offsets"][1]) for entry in content.values()), default=0)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(SUBJECT, [f"{path.name} is no safetensors file. {again}"]) from error
    if size < 8 + length + end:
        raise InputError(SUBJECT, [f"{path.name} is cut short. {again}"])
    return Header(metadata, tensors)


def describe_lora(lora: Mapping[str, torch.Tensor]) -> str:
    """What a LoRA is, a line a subject: kind, ranks, alphas, layers, base model."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in lora.items():
        place = split_key(key)
        if place is not None:
            modules.setdefault(place[0], {})[place[1]] = tensor
    kinds = Counter(
        next((KINDS[entry] for entry in KINDS if entry in entries), "other") for entries in modules.values()
    )
    ranks = Counter(rank for entries in modules.values() if (rank := _rank(entries)) is not None)
    alphas = Counter(
        f"{float(entries[ALPHA]):g}" if ALPHA in entries else "as rank"
        for entries in modules.values()
        if _rank(entries) is not None
    )
    text = sum(name.startswith(("lora_te", "text_encoder")) for name in modules)
    dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in lora.values() if t.dim())
    metadata: Mapping[str, str] = getattr(lora, "metadata", {})
    base = metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or "not said"
    lines = [
        f"Kind: {_counted(kinds)}",
        f"Rank: {_counted(ranks)}",
        f"Alpha: {_counted(alphas)}",
        f"Layers: {len(modules) - text} of the diffusion model, {text} of text encoders",
        f"Numbers: {sum(t.numel() for t in lora.values()):,}, {', '.join(dtype for dtype, _ in dtypes.most_common())}",
        f"Base model: {base}",
    ]
    for label, key in (("Trigger", "modelspec.trigger_phrase"), ("Steps", "ss_steps"), ("Title", "modelspec.title")):
        if metadata.get(key):
            lines.append(f"{label}: {metadata[key]}")
    return "\n".join(lines)


def _counted(found: Counter) -> str:
    return ", ".join(f"{each} ({count})" for each, count in found.most_common()) or "none"


def _rank(entries: Mapping[str, torch.Tensor]) -> int | None:
    for entry in (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if entry in entries:
            return entries[entry].shape[0]
    return entries["oft_blocks"].shape[-1] if "oft_blocks" in entries else None


def _with_peft_alphas(tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Adds the alphas that diffusers keeps in the metadata (lora_adapter_metadata), where a file has no others."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        settings = {}
    if not isinstance(settings, dict):
        return tensors
    alphas = {}
    for key, tensor in tensors.items():
        component, _, module = key.partition(".")
        if not key.endswith(".lora_A.weight"):
            continue
        name, pattern = module.removesuffix(".lora_A.weight"), settings.get(f"{component}.alpha_pattern")
        alpha = settings.get(f"{component}.lora_alpha")
        if isinstance(pattern, dict):
            alpha = pattern.get(name, alpha)
        if not is_finite(alpha):
            continue
        alpha = float(alpha)
        rank = tensor.shape[0]
        if settings.get(f"{component}.use_rslora"):
            alpha *= rank**0.5
        if alpha != rank:
            alphas[f"{component}.{name}.alpha"] = torch.tensor(alpha)
    return {**alphas, **tensors}
