"""A LoRA for a file: adapters to tensors, key formats and number formats."""

import re
from collections.abc import Iterable, Mapping

import torch

from .. import host
from ..adapters import EXACT, Adapter
from ..basics.errors import InputError, raise_if_any
from ..host import LayerNames
from .keys import ALPHA, DOWN, ENTRIES, MAGNITUDE, UP, Layers, is_no_adapters, layers_of, scale_of, split_key
from .lora import DTYPES, LoRAModel, usual_dtype
from .metadata import implementation

FORMATS = ("kohya", "diffusers", "comfyui")
AS_TRAINED = "as trained"
LISTED = 5


def lora_tensors(
    adapters: Mapping[str, Adapter], names: Mapping[str, LayerNames], precision: str = "fp32"
) -> dict[str, torch.Tensor]:
    """The adapters as kohya's state dict (`<name>.lora_down.weight`, `.lora_up.weight`, `.alpha` ...), on the CPU.

    Args:
        adapters: by state-dict key of the base weight.
        names: by state-dict key.
        precision: one of DTYPES; tensors that fp16 cannot hold stay float32, which is logged.
    """
    tensors = {
        f"{names[key].kohya}.{entry}": tensor
        for key, adapter in adapters.items()
        for entry, tensor in adapter.tensors().items()
    }
    return dict(in_precision(LoRAModel(tensors, {}, "", precision=precision), AS_TRAINED))


def as_format(
    lora: Mapping[str, torch.Tensor],
    form: str,
    names: Mapping[str, LayerNames] | None = None,
    precision: str = AS_TRAINED,
) -> LoRAModel:
    """A LoRA with its keys in another format.

    Args:
        lora: with keys of any format.
        form: one of FORMATS. "kohya": used by most trainers. "diffusers": for its `load_lora_weights` and for the host:
            peft's `transformer.<path>.lora_A.weight` and `lora_B.weight`, of UNets diffusers' older
            `unet.<path>.processor.to_q_lora.down.weight`, with the scale in the second factor and fused layers split.
            "comfyui": used by the host's trainer.
        names: layer names of the LoRA's model, by state-dict key; not needed if the LoRA knows its layers or already
            has the format.
        precision: AS_TRAINED or one of DTYPES, as in `in_precision`.

    Raises:
        InputError: the layers are not known, the format cannot hold the LoRA, or the number format its values.

    What is no adapter's (`is_no_adapters`) stays; diffusers refuses files with it, so its format leaves it out.
    """
    _check_choice("format", form, FORMATS)
    known = list(names.values()) if names else list(getattr(lora, "layers", {}).values())
    adapters = {key: tensor for key, tensor in lora.items() if not is_no_adapters(key)}
    is_there = _has_form(adapters, form) or (not known and form == "diffusers" and _is_pefts(adapters))
    converted = adapters if is_there else _converted(adapters, form, known)
    if form != "diffusers":
        converted |= {key: tensor for key, tensor in lora.items() if key not in adapters}
    metadata = dict(getattr(lora, "metadata", {}))
    if "modelspec.architecture" in metadata:
        metadata["modelspec.implementation"] = implementation(metadata["modelspec.architecture"], form)
    lora_precision = getattr(lora, "precision", None)
    if converted.keys() != lora.keys():
        metadata.pop("lora_adapter_metadata", None)  # diffusers' ranks and alphas, for the old keys
        lora_precision = next((each for each, dtype in DTYPES.items() if dtype == usual_dtype(lora)), None)
    layers = {layer.kohya: layer for layer in known}
    return in_precision(LoRAModel(converted, metadata, getattr(lora, "name", ""), layers, lora_precision), precision)


def in_precision(lora: Mapping[str, torch.Tensor], precision: str) -> LoRAModel:
    """A LoRA with its tensors in another number format, on the CPU.

    Args:
        precision: one of DTYPES, or AS_TRAINED: the LoRA's `precision`, or no change if it has none. With AS_TRAINED,
            tensors that the format cannot hold stay float32, which is logged, so that no training is lost.

    Raises:
        InputError: the chosen number format cannot hold the values.
    """
    _check_choice("precision", precision, (AS_TRAINED, *DTYPES))
    wanted = getattr(lora, "precision", None) if precision == AS_TRAINED else precision
    tensors = {key: _cast(key, tensor, DTYPES[wanted] if wanted else tensor.dtype) for key, tensor in lora.items()}
    too_large = [key for key, tensor in lora.items() if _overflows(tensor, tensors[key])]
    if too_large and precision != AS_TRAINED:
        problem = (
            f"precision is {precision}, which cannot hold the values of {_listed(too_large)}: choose bf16 or fp32."
        )
        raise InputError("Save LoRA", [problem])
    if too_large:
        host.log("%d tensors are too large for %s and stay fp32: %s", len(too_large), wanted, _listed(too_large))
    tensors |= {key: _cast(key, lora[key], torch.float32) for key in too_large}
    layers, name = getattr(lora, "layers", {}), getattr(lora, "name", "")
    return LoRAModel(tensors, getattr(lora, "metadata", {}), name, layers, wanted)


def knows_layers(lora: Mapping[str, torch.Tensor], form: str, names: Mapping[str, LayerNames] | None = None) -> bool:
    """Whether `as_format` can convert: the layers' names are known, or the LoRA already has the format."""
    adapters = {key: tensor for key, tensor in lora.items() if not is_no_adapters(key)}
    return bool(names or getattr(lora, "layers", None)) or _has_form(adapters, form)


def notes_about(lora: Mapping[str, torch.Tensor], converted: Mapping[str, torch.Tensor]) -> list[str]:
    """Sentences about what `as_format` kept as it is or left out of a LoRA, and what the host will not find."""
    others = [key for key in lora if is_no_adapters(key)]
    kept, lost = [key for key in others if key in converted], [key for key in others if key not in converted]
    hidden = [key for key in converted if re.fullmatch(r"unet\..+\.to_(q|k|v|out\.0)\.lora_[AB]\.weight", key)]
    strange = [key for key in converted if (split_key(key) or ("", ""))[1] == MAGNITUDE]
    notes = []
    if kept:
        notes.append(f"No adapter's, kept as it is: {_listed(kept)}.")
    if lost:
        notes.append(f"Left out, since diffusers refuses files with more than adapters: {_listed(lost)}.")
    if hidden or strange:
        notes.append(
            f"ComfyUI's own LoRA loader does not read {_listed([*hidden, *strange])}: connect the model, and choose "
            "kohya or comfyui" + ("." if strange else ", or diffusers again.")
        )
    return notes


def _converted(lora: Mapping[str, torch.Tensor], form: str, known: list[LayerNames]) -> dict[str, torch.Tensor]:
    if not known:
        problem = (
            f"format is {form}, but this LoRA does not say which layers it is for: "
            "connect the model (and clip) that it was trained on."
        )
        raise InputError("Save LoRA", [problem])
    found = layers_of(lora, known)
    if found.unknown:
        problem = (
            f"lora holds {_listed(found.unknown)}, which the model (and clip) does not have or which cannot be read: "
            "connect those that it was trained on."
        )
        raise InputError("Save LoRA", [problem])
    by_name = {layer.kohya: layer for layer in known}
    if form == "diffusers":
        _check_peft(found, by_name)
        tensors: dict[str, torch.Tensor] = {}
        for kohya, entries in found.entries.items():
            tensors |= _peft_tensors(entries, by_name[kohya])
        return tensors
    tensors = dict(found.parts)  # have no name in this format; the host reads them under their keys
    for kohya, entries in found.entries.items():
        prefix = kohya if form == "kohya" else by_name[kohya].comfy
        tensors |= {f"{prefix}.{entry}": tensor for entry, tensor in entries.items()}
        if DOWN in entries and ALPHA not in entries:
            tensors[f"{prefix}.{ALPHA}"] = torch.tensor(float(entries[DOWN].shape[0]))
    return tensors


def _check_peft(found: Layers, by_name: Mapping[str, LayerNames]) -> None:
    plain = [kohya for kohya, entries in found.entries.items() if {DOWN, UP} <= set(entries) <= {DOWN, UP, ALPHA}]
    others = [*found.parts, *(kohya for kohya in found.entries if kohya not in plain)]
    nameless = [kohya for kohya in plain if not by_name[kohya].diffusers]
    problems = []
    if others:
        problems.append(
            "format is diffusers, which holds plain LoRA alone (no DoRA, LoHa, LoKr, OFT or differences), "
            f"but lora has {_listed(others)}: choose kohya or comfyui."
        )
    if nameless:
        problems.append(
            f"format is diffusers, but diffusers has no name for {_listed(nameless)}: choose kohya or comfyui."
        )
    raise_if_any("Save LoRA", problems)


def _peft_tensors(entries: Mapping[str, torch.Tensor], layer: LayerNames) -> dict[str, torch.Tensor]:
    """Both factors of each part of a layer; the second is multiplied by the scale."""
    scale = scale_of(entries)
    up = entries[UP] if scale == 1.0 else entries[UP].float() * scale
    rows: dict[str, list[torch.Tensor]] = {}
    for path, start, length in layer.diffusers:
        rows.setdefault(path, []).append(up[start : start + length])
    tensors = {}
    for path, parts in rows.items():
        first, second = _diffusers_keys(path)
        tensors[first] = entries[DOWN].clone()
        tensors[second] = torch.cat(parts)
    return tensors


def _diffusers_keys(path: str) -> tuple[str, str]:
    """Keys of a module's two factors that both diffusers and the host read: for UNets, those of older diffusers."""
    if not path.startswith("unet."):
        return f"{path}.lora_A.weight", f"{path}.lora_B.weight"
    attention = re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".processor.to_\1_lora", path)
    prefix = f"{path}.lora" if attention == path else attention
    return f"{prefix}.down.weight", f"{prefix}.up.weight"


def _has_form(adapters: Mapping[str, torch.Tensor], form: str) -> bool:
    """Whether the keys of a LoRA's adapters are those that `as_format` writes."""
    if form == "diffusers":
        ours = r"unet\..+[._]lora\.(down|up)\.weight|(transformer|text_encoder(_\d)?)\..+\.lora_[AB]\.weight"
        return bool(adapters) and all(re.fullmatch(ours, key) for key in adapters)
    starts = ("lora_unet_", "lora_te") if form == "kohya" else ("diffusion_model.", "text_encoders.")
    return all(key.startswith(starts) and key.endswith(tuple(f".{entry}" for entry in ENTRIES)) for key in adapters)


def _is_pefts(adapters: Mapping[str, torch.Tensor]) -> bool:
    """Whether a LoRA's adapters have the keys that diffusers itself writes."""
    pefts = rf"(unet|transformer|text_encoder(_\d)?)\..+\.(lora_[AB]|{MAGNITUDE})\.weight"
    return bool(adapters) and all(re.fullmatch(pefts, key) for key in adapters)


def _cast(key: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A copy on the CPU in `dtype`; alphas, DoRA's magnitudes and integers keep their format."""
    keeps = key.rpartition(".")[2] in EXACT or MAGNITUDE in key or not tensor.is_floating_point()
    return tensor.detach().to("cpu", tensor.dtype if keeps else dtype, copy=True)


def _overflows(before: torch.Tensor, after: torch.Tensor) -> bool:
    return bool(before.float().isfinite().all()) and not bool(after.float().isfinite().all())


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more


def _check_choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError("Save LoRA", [f"{field} is {value!r}; choose one of: {', '.join(allowed)}."])
