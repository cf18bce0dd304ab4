"""Keys of LoRA files: the layer, and the entry of its adapter, that a key names in each spelling in use."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch

from ..host import LayerNames, Rows

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"
ENTRIES = (
    *(DOWN, UP, ALPHA, "lora_mid.weight", "dora_scale", "reshape_weight"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    *("oft_blocks", "rescale", "a1.weight", "a2.weight", "b1.weight", "b2.weight"),
    *("diff", "diff_b", "set_weight", "w_norm", "b_norm"),
)
"""Ends of kohya's and ComfyUI's keys, after the layer's name."""
CHANGES = ("diff", "diff_b", "set_weight", "w_norm", "b_norm")
"""Entries that change a weight or a bias directly, without an adapter."""
OTHER_SPELLINGS = {
    ".lora_A.default.weight": DOWN, ".lora_B.default.weight": UP,
    ".lora_A.weight": DOWN, ".lora_B.weight": UP,
    ".lora_A": DOWN, ".lora_B": UP,
    ".lora_linear_layer.down.weight": DOWN, ".lora_linear_layer.up.weight": UP,
    "_lora.down.weight": DOWN, "_lora.up.weight": UP,
    ".lora.down.weight": DOWN, ".lora.up.weight": UP,
}  # fmt: skip
"""Ends of peft's and older diffusers' keys -> kohya's."""
MAGNITUDE = "lora_magnitude_vector"
"""peft's DoRA. It normalises the rows of the changed weight, unlike the host's and LyCORIS' DoRA."""
MAGNITUDES = {f".{MAGNITUDE}{end}": MAGNITUDE for end in ("", ".weight", ".default", ".default.weight")}
ENDINGS = {f".{entry}": entry for entry in ENTRIES} | OTHER_SPELLINGS | MAGNITUDES


@dataclass
class Layers:
    """A LoRA's tensors, by layer."""

    entries: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Kohya's name of the layer -> entry (one of ENTRIES) -> tensor."""
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    """Adapters on parts of a fused layer that cannot be combined into one on the layer, and changes of parameters that
    are no layer's weight, under keys that the host's loader knows."""
    unknown: list[str] = field(default_factory=list)
    """Keys that name no layer of the model or do not fit it."""


def split_key(key: str) -> tuple[str, str] | None:
    """Splits a key into (layer in the file's spelling, one of ENTRIES); None if it is not a LoRA's key."""
    for ending, entry in ENDINGS.items():
        if key.endswith(ending) and len(key) > len(ending):
            return key[: -len(ending)], entry
    return None


def is_no_adapters(key: str) -> bool:
    """Whether a key is no adapter's, but of something else in the file, such as OneTrainer's embeddings."""
    return split_key(key) is None


def layers_of(lora: Mapping[str, torch.Tensor], names: Iterable[LayerNames]) -> Layers:
    """Groups a LoRA in any spelling by the layers of a model.

    Adapters on parts of a fused layer (diffusers' to_q, to_k and to_v) become one adapter on the layer: their downs
    are stacked, their ups, multiplied by the scale, are placed in their rows, and alpha = rank.
    """
    index = spellings_of(names)
    layers = Layers()
    modules: dict[str, dict[str, torch.Tensor]] = {}
    keys: dict[str, list[str]] = {}
    for key, tensor in lora.items():
        parts = split_key(key)
        if parts is None or parts[0] not in index:
            layers.unknown.append(key)
        else:
            modules.setdefault(parts[0], {})[parts[1]] = tensor
            keys.setdefault(parts[0], []).append(key)
    by_layer: dict[str, list[str]] = {}
    for module in modules:
        by_layer.setdefault(index[module][0].kohya, []).append(module)
    for kohya, named in by_layer.items():
        layer = index[named[0]][0]
        found = [(index[module][1], modules[module]) for module in named]
        originals = [key for module in named for key in keys[module]]
        if any(MAGNITUDE in entries for _, entries in found):
            entries = None  # cannot be converted, and the rest means something else without it
        elif layer.is_weight and [rows for rows, _ in found] == [((0, layer.shape[0]),)]:
            entries = shaped(found[0][1], layer.shape)
        elif _are_parts(found, layer):
            entries = _stacked(found, layer.shape)
        else:
            for module in named:
                name = _hosts_name(module, *index[module])
                layers.parts |= {f"{name}.{entry}": tensor for entry, tensor in modules[module].items()}
            continue
        if entries is None:
            layers.unknown += originals
        else:
            layers.entries[kohya] = entries
    return layers


def scale_of(entries: Mapping[str, torch.Tensor]) -> float:
    """alpha / rank of a LoRA's entries; 1 without an alpha."""
    return float(entries[ALPHA]) / entries[DOWN].shape[0] if ALPHA in entries else 1.0


def spellings_of(names: Iterable[LayerNames]) -> dict[str, tuple[LayerNames, Rows]]:
    """Every spelling of a layer or a part of it -> (layer, rows of its weight, in the file's order).

    What the host's loader takes a name for comes first; spellings beside the host's that are ambiguous are left out.
    """
    index: dict[str, tuple[LayerNames, Rows]] = {}
    hosts: dict[str, tuple[LayerNames, Rows]] = {}
    loose: dict[str, tuple[LayerNames, Rows]] = {}
    clashes: set[str] = set()
    for layer in names:
        whole: Rows = ((0, layer.shape[0]),)
        parts: dict[str, Rows] = {}
        for path, start, length in layer.diffusers:
            parts[path] = (*parts.get(path, ()), (start, length))
        for name in (layer.kohya, layer.comfy, layer.comfy.replace("diffusion_model.", "", 1)):
            index[name] = layer, whole
        for path, rows in parts.items():
            index[path] = layer, rows
        for name, rows in layer.spellings:
            hosts[name] = layer, rows
        for name, rows in _loose_spellings(layer, whole, parts):
            if name in loose and loose[name] != (layer, rows):
                clashes.add(name)
            loose[name] = layer, rows
    return {name: found for name, found in loose.items() if name not in clashes} | index | hosts


def _hosts_name(module: str, layer: LayerNames, rows: Rows) -> str:
    """The first of the host's spellings for the rows that a file's spelling names; else the file's."""
    return next((name for name, known in layer.spellings if known == rows), module)


def _loose_spellings(layer: LayerNames, whole: Rows, parts: Mapping[str, Rows]) -> Iterable[tuple[str, Rows]]:
    """Spellings of a layer and its parts in other trainers' and older files."""
    if layer.comfy.startswith("diffusion_model."):
        path = layer.comfy.removeprefix("diffusion_model.")
        for prefix in ("base_model.model.", "transformer.", "unet.", "model.diffusion_model."):
            yield prefix + path, whole
        for prefix in ("lora_unet_", "lora_unet__", "lora_transformer_", "lycoris_"):
            yield prefix + path.replace(".", "_"), whole
    else:
        path = layer.comfy.removeprefix("text_encoders.")
        yield path, whole
        yield re.sub(r"^lora_te_", "lora_te1_", layer.kohya), whole
        yield re.sub(r"^lora_te1_", "lora_te_", layer.kohya), whole
    for path, rows in parts.items():
        prefix, _, module = path.partition(".")
        if prefix in ("unet", "transformer"):
            for start in ("", "base_model.model.", f"{prefix}.base_model.model.", f"base_model.model.{prefix}."):
                yield start + module, rows
            for start in ("lora_unet_", "lora_transformer_", "lycoris_"):
                yield start + module.replace(".", "_"), rows
            older = re.sub(r"\.to_out\.0$", ".to_out", module.replace(".to_", ".processor.to_"))
            yield older, rows
            yield f"{prefix}.{older}", rows
        else:
            yield f"{prefix}.base_model.model.{module}", rows
            yield re.sub(r"\.text_model\.", ".", path, count=1), rows
            yield re.sub(r"\.self_attn\.(\w+)_proj$", r".self_attn.to_\1", path), rows


def _are_parts(found: list[tuple[Rows, dict[str, torch.Tensor]]], layer: LayerNames) -> bool:
    """Whether all adapters are plain LoRAs on parts of the layer."""
    return layer.is_weight and all(
        rows != ((0, layer.shape[0]),) and {DOWN, UP} <= set(entries) <= {DOWN, UP, ALPHA} for rows, entries in found
    )


def shaped(entries: dict[str, torch.Tensor], shape: tuple[int, ...]) -> dict[str, torch.Tensor] | None:
    """A layer's entries, with a LoRA's factors reshaped to (rank, in, *kernel) and (out, rank, *1s).

    None if they do not fit the layer. Kinds of adapters that are not trained here are not checked.
    """
    sizes = {entry: tuple(tensor.shape) for entry, tensor in entries.items()}
    fits = {"hada_w1_a": _loha_fits, "lokr_w1": _lokr_fits, "lokr_w1_a": _lokr_fits, "oft_blocks": _oft_fits}
    if not all(check(sizes, shape) for entry, check in fits.items() if entry in entries):
        return None
    if "dora_scale" in entries and entries["dora_scale"].numel() not in shape[:2]:
        return None
    if not {DOWN, UP} <= set(entries) or "lora_mid.weight" in entries or "reshape_weight" in entries:
        return entries
    down, up = entries[DOWN], entries[UP]
    out, *rest = shape
    rank = down.shape[0] if down.dim() else 0
    if not rank or down.numel() != rank * math.prod(rest) or up.numel() != out * rank:
        return None
    return {**entries, DOWN: down.reshape(rank, *rest), UP: up.reshape(out, rank, *(1 for _ in rest[1:]))}


Sizes = Mapping[str, tuple[int, ...]]
"""entry -> shape of its tensor"""


def _loha_fits(sizes: Sizes, shape: tuple[int, ...]) -> bool:
    """Whether both products have the shape (out, in * prod(kernel))."""
    if "hada_t1" in sizes or "hada_t2" in sizes:
        return True
    wanted = shape[0], math.prod(shape[1:])
    return all(_product(sizes, f"hada_w{number}") == wanted for number in (1, 2))


def _lokr_fits(sizes: Sizes, shape: tuple[int, ...]) -> bool:
    """Whether the Kronecker product of the factors has the weight's shape; the second factor holds the kernel."""
    if "lokr_t2" in sizes:
        return True
    first, second = _product(sizes, "lokr_w1"), _product(sizes, "lokr_w2")
    if len(first) < 2 or len(second) < 2 or math.prod(first[2:]) != 1:
        return False
    inner = first[1] * math.prod(second[1:])
    return first[0] * second[0] == shape[0] and inner == math.prod(shape[1:]) and shape[1] % first[1] == 0


def _oft_fits(sizes: Sizes, shape: tuple[int, ...]) -> bool:
    """Whether the blocks are square and cover all rows."""
    blocks = sizes["oft_blocks"]  # (number, size, size); BOFT has a fourth dimension
    return len(blocks) != 3 or (blocks[0] * blocks[1] == shape[0] and blocks[1] == blocks[2])


def _product(sizes: Sizes, name: str) -> tuple[int, ...]:
    """Shape of the factor `<name>`, or of `<name>_a` @ `<name>_b`; () if they cannot be multiplied."""
    if name in sizes:
        return sizes[name]
    one, other = sizes.get(f"{name}_a", ()), sizes.get(f"{name}_b", ())
    return (one[0], other[1]) if len(one) == len(other) == 2 and one[1] == other[0] else ()


def _stacked(
    found: list[tuple[Rows, dict[str, torch.Tensor]]], shape: tuple[int, ...]
) -> dict[str, torch.Tensor] | None:
    """Combines adapters on parts of a layer; exact if every scale is 1, else multiplied in float32."""
    downs, ups = [], []
    for rows, entries in found:
        part = shaped(entries, (sum(length for _, length in rows), *shape[1:]))
        if part is None:
            return None
        scale = scale_of(part)
        scaled = part[UP] if scale == 1.0 else part[UP].float() * scale
        up = torch.zeros(shape[0], *scaled.shape[1:], dtype=scaled.dtype)
        row = 0
        for start, length in rows:
            up[start : start + length] = scaled[row : row + length]
            row += length
        downs.append(part[DOWN])
        ups.append(up)
    if all(torch.equal(down, downs[0]) for down in downs):  # these parts were split from one adapter on the fused layer
        down, up = downs[0], torch.stack([each.float() for each in ups]).sum(0).to(_common(ups))
    else:
        down = torch.cat([each.to(_common(downs)) for each in downs])
        up = torch.cat([each.to(_common(ups)) for each in ups], dim=1)
    return {DOWN: down, UP: up, ALPHA: torch.tensor(float(down.shape[0]))}


def _common(tensors: list[torch.Tensor]) -> torch.dtype:
    """The tensors' number format if they have the same one, else float32."""
    dtypes = {tensor.dtype for tensor in tensors}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
