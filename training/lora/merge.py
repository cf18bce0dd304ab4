"""Several LoRAs as one, and a LoRA at a lower rank.

A LoRA changes a layer's weight by dW = alpha / rank * up @ down (Hu et al., arXiv:2106.09685). The sum of several is a
LoRA again, whose rank is the sum of theirs; the best one of a lower rank is its truncated singular value decomposition
(Eckart and Young, 1936).
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import reduce

import torch
from torch import Tensor

from ..adapters import LoRA, adapter_from_tensors
from ..basics.errors import raise_if_any
from ..host import LayerNames
from .keys import ALPHA, CHANGES, DOWN, UP, layers_of, split_key
from .lora import DTYPES, LoRAModel, usual_dtype

SUBJECT = "Merge and Resize LoRAs"
ADDED = {"diff": "diff", "w_norm": "diff", "diff_b": "diff_b", "b_norm": "diff_b"}
"""Entries that are a difference themselves, and what they are called in the merged LoRA."""
OF_THE_FILE = ("sshs_", "modelspec.hash", "lora_adapter_metadata", "workflow", "prompt", "kiln_conv_")
"""Beginnings of metadata that tell of the file as it was."""
OF_THE_SHAPE = ("algo", "conv_dim", "conv_alpha", "dora_wd", "rs_lora", "factor", "layer_rules")
"""Of ss_network_args: what no longer holds."""
LISTED = 3

Entries = Mapping[str, Tensor]
"""entry of a file (such as lora_down.weight) -> tensor"""


@dataclass(frozen=True)
class Part:
    """A LoRA and how much of it is wanted."""

    lora: Mapping[str, Tensor]
    weight: float
    field: str
    """what the user calls it"""

    @property
    def name(self) -> str:
        return getattr(self.lora, "name", "") or self.field


@dataclass(frozen=True)
class Factors:
    """A difference of rank r as up (m, r) @ down (r, n), float32."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Merged:
    """The one LoRA, and what it cost."""

    lora: LoRAModel
    errors: dict[str, float]
    """layer -> Frobenius norm of what the lower rank leaves out, relative to the layer's difference"""
    error: float
    """the same over all layers together"""
    report: str


def merge_loras(
    parts: Sequence[Part],
    rank: int = 0,
    names: Iterable[LayerNames] = (),
    device: torch.device | str = "cpu",
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """The LoRA whose difference is the weighted sum of the parts' differences, layer by layer.

    Args:
        rank: the highest rank of a layer; 0 = as high as the sum needs. A layer that one part alone has, with weight
            1 and rank 0, stays as it is, whatever its kind.
        names: of the model's layers, where a LoRA may have other names than kohya's and does not know them itself.
        device: where to compute; the result lies on the CPU.
        on_layer: called with (layers done, layers in all).

    Raises:
        InputError: a part that cannot be added: its layers have unknown names, or it is DoRA or OFT, which are no
            differences without the base model's weight, or the shapes differ.
    """
    if not parts:
        raise_if_any(SUBJECT, ["there is no LoRA: connect lora_1."])
    empty = [part for part in parts if not part.lora]
    raise_if_any(SUBJECT, [f"{part.field} ({part.name}) is empty: connect a LoRA that has layers." for part in empty])
    known = _known_layers(parts, names)
    by_part = [_layers(part, known) for part in parts]
    layers = list(dict.fromkeys(layer for entries in by_part for layer in entries))
    _refuse_what_has_no_sum(parts, by_part, layers, rank)
    result = _Sum(rank, torch.device(device))
    for number, layer in enumerate(layers):
        terms = [
            (part.weight, entries[layer]) for part, entries in zip(parts, by_part, strict=True) if layer in entries
        ]
        result.add(layer, terms, known.get(layer))
        on_layer(number + 1, len(layers))
    name = " + ".join(dict.fromkeys(part.name for part in parts))
    lora = LoRAModel(result.tensors, _metadata(parts, result, name), name, known, _precision(parts))
    return Merged(lora, result.errors, result.error, _report(parts, result))


# ---------------------------------------------------------------- the mathematics


def concatenated(terms: Sequence[tuple[float, Factors]]) -> Factors:
    """sum_i w_i * up_i @ down_i exactly: the ranks add up, the weights are in up."""
    up = torch.cat([weight * factors.up for weight, factors in terms], dim=1)
    return Factors(up, torch.cat([factors.down for _, factors in terms]))


def reduced(factors: Factors, rank: int) -> tuple[Factors, Tensor]:
    """The best approximation of a lower rank, and all singular values, descending.

    up = Q_u R_u and down^T = Q_d R_d, so the singular values of up @ down are those of the small R_u R_d^T.
    """
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    root = s[:rank].sqrt()
    return Factors(q_up @ (u[:, :rank] * root), (root[:, None] * vh[:rank]) @ q_down.T), s


def factorised(difference: Tensor, rank: int = 0) -> tuple[Factors, Tensor]:
    """A whole difference (m, n) as factors, and all singular values.

    Args:
        rank: the highest wanted; 0 = the numerical rank, which loses nothing.
    """
    u, s, vh = torch.linalg.svd(difference, full_matrices=False)
    numerical = int((s > s[0] * max(difference.shape) * torch.finfo(s.dtype).eps).sum())
    kept = max(1, min(rank or numerical, numerical))
    root = s[:kept].sqrt()
    return Factors(u[:, :kept] * root, root[:, None] * vh[:kept]), s


# ---------------------------------------------------------------- a layer at a time


@dataclass
class _Sum:
    """The merged LoRA as it grows."""

    limit: int
    device: torch.device
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    kept_as_they_are: int = 0
    _lost: float = 0.0
    _whole: float = 0.0

    @property
    def error(self) -> float:
        return (self._lost / self._whole) ** 0.5 if self._whole else 0.0

    def add(self, layer: str, terms: Sequence[tuple[float, Entries]], names: LayerNames | None) -> None:
        if self.limit == 0 and len(terms) == 1 and terms[0][0] == 1.0:
            self._keep(layer, terms[0][1])
            return
        dtype = _joint(t.dtype for _, entries in terms for t in entries.values() if t.dim() and t.is_floating_point())
        for entry, name in ADDED.items():
            for weight, entries in terms:
                if entry in entries and (name == "diff_b" or entries[entry].dim() < 2):
                    self._accumulate(f"{layer}.{name}", weight * entries[entry].float(), dtype)
        matrices, kernel = [], names.shape[2:] if names else ()
        for weight, entries in terms:
            if (matrix := _matrix(entries, self.device)) is not None:
                _check_shape(layer, matrix, names)
                matrices.append((weight, matrix))
                kernel = kernel or _kernel(entries)
        if matrices:
            self._store(layer, self._summed(layer, matrices), kernel, dtype)

    def _keep(self, layer: str, entries: Entries) -> None:
        self.tensors |= {f"{layer}.{entry}": tensor.detach().cpu() for entry, tensor in entries.items()}
        if set(entries) - set(CHANGES):
            self.kept_as_they_are += 1
        if DOWN in entries:
            self.ranks[layer] = entries[DOWN].shape[0]
            self.alphas[layer] = float(entries[ALPHA]) if ALPHA in entries else float(self.ranks[layer])

    def _summed(self, layer: str, matrices: list[tuple[float, Factors | Tensor]]) -> Factors:
        factors = [(weight, matrix) for weight, matrix in matrices if isinstance(matrix, Factors)]
        if len(factors) == len(matrices):
            exact = concatenated(factors)
            if not self.limit or exact.rank <= self.limit:
                return exact
            result, singular = reduced(exact, self.limit)
        else:
            whole = sum(w * (m.up @ m.down if isinstance(m, Factors) else m) for w, m in matrices)
            assert isinstance(whole, Tensor)
            result, singular = factorised(whole, self.limit)
        lost, total = float(singular[result.rank :].double().square().sum()), float(singular.double().square().sum())
        if self.limit:
            self.errors[layer] = (lost / total) ** 0.5 if total else 0.0
        self._lost, self._whole = self._lost + lost, self._whole + total
        return result

    def _store(self, layer: str, factors: Factors, kernel: Sequence[int], dtype: torch.dtype) -> None:
        down = factors.down.reshape(factors.rank, -1, *kernel)
        up = factors.up.reshape(-1, factors.rank, *(1 for _ in kernel))
        self.tensors[f"{layer}.{DOWN}"] = _held(down, dtype)
        self.tensors[f"{layer}.{UP}"] = _held(up, dtype)
        self.tensors[f"{layer}.{ALPHA}"] = torch.tensor(float(factors.rank))
        self.ranks[layer], self.alphas[layer] = factors.rank, float(factors.rank)

    def _accumulate(self, key: str, difference: Tensor, dtype: torch.dtype) -> None:
        if key in self.tensors and self.tensors[key].shape != difference.shape:
            one, other = list(self.tensors[key].shape), list(difference.shape)
            raise_if_any(
                SUBJECT, [f"{key} is {one} in one LoRA and {other} in another: they are for different models."]
            )
        self.tensors[key] = _held(
            difference.cpu() + self.tensors[key].float() if key in self.tensors else difference, dtype
        )


def _matrix(entries: Entries, device: torch.device) -> Factors | Tensor | None:
    """A layer's difference, (out, in * kernel), float32: as factors where it has them; None where it has none."""
    if "diff" in entries:
        return entries["diff"].to(device).float().flatten(1) if entries["diff"].dim() > 1 else None
    own = _adapter_entries(entries)
    if not own:
        return None
    adapter = adapter_from_tensors(own)
    assert adapter is not None  # refused before
    if isinstance(adapter, LoRA) and adapter.kind == "lora":
        down, up = (t.detach().to(device).float().flatten(1) for t in (adapter.down, adapter.up))
        return Factors(up * (adapter.alpha / adapter.rank), down)
    return adapter.difference().detach().to(device).float().flatten(1)


def _shape(matrix: Factors | Tensor) -> tuple[int, int]:
    whole = (matrix.up.shape[0], matrix.down.shape[1]) if isinstance(matrix, Factors) else matrix.shape
    return whole[0], whole[1]


def _check_shape(layer: str, matrix: Factors | Tensor, names: LayerNames | None) -> None:
    if names is None or not names.shape or _shape(matrix) == (names.shape[0], math.prod(names.shape[1:])):
        return
    rows, columns = _shape(matrix)
    problem = f"{layer} is {rows} x {columns}, and not as the model has it: connect the model that the LoRAs are for."
    raise_if_any(SUBJECT, [problem])


def _joint(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """A number format that holds what several do; those of 8 bit, which torch joins with nothing, count as fp16."""
    wide = [torch.float16 if dtype.itemsize == 1 else dtype for dtype in dtypes]
    return reduce(torch.promote_types, wide or [torch.float32])


def _kernel(entries: Entries) -> tuple[int, ...]:
    """The kernel of the layer's convolution, as far as an adapter's shapes tell it."""
    return next((tuple(entries[name].shape[2:]) for name in (DOWN, "diff", "lokr_w2") if name in entries), ())


def _adapter_entries(entries: Entries) -> dict[str, Tensor]:
    return {entry: tensor for entry, tensor in entries.items() if entry not in CHANGES}


def _held(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """On the CPU in the parts' number format, or float32 where that cannot hold the values."""
    cast = tensor.detach().to("cpu", dtype)
    return (cast if cast.isfinite().all() else tensor.detach().cpu().float()).contiguous()


# ---------------------------------------------------------------- names, and what cannot be added


def _known_layers(parts: Sequence[Part], names: Iterable[LayerNames]) -> dict[str, LayerNames]:
    known = {layer.kohya: layer for layer in names}
    for part in parts:
        known |= getattr(part.lora, "layers", {})
    return known


def _layers(part: Part, known: Mapping[str, LayerNames]) -> dict[str, dict[str, Tensor]]:
    """A part's entries by kohya's layer names."""
    split = {key: split_key(key) for key in part.lora}
    if all(place and place[0].startswith(("lora_unet_", "lora_te")) for place in split.values()):
        layers: dict[str, dict[str, Tensor]] = {}
        for key, place in split.items():
            assert place is not None
            layers.setdefault(place[0], {})[place[1]] = part.lora[key]
        return layers
    if not known:
        problem = (
            f"{part.field} ({part.name}) does not name its layers as kohya does, as in {next(iter(part.lora), '')}: "
            "connect the model (and clip) that it is for."
        )
        raise_if_any(SUBJECT, [problem])
    found = layers_of(part.lora, known.values())
    if strangers := [*found.unknown, *found.parts]:
        problem = f"{part.field} ({part.name}) holds what cannot be added: {_listed(strangers)}."
        raise_if_any(SUBJECT, [problem + " Connect the model (and clip) that it is for, or leave it out."])
    return {layer: dict(entries) for layer, entries in found.entries.items()}


def _refuse_what_has_no_sum(
    parts: Sequence[Part], by_part: Sequence[Mapping[str, Entries]], layers: Iterable[str], rank: int
) -> None:
    shared = {layer for layer in layers if sum(layer in entries for entries in by_part) > 1}
    refused: dict[tuple[str, str, str], list[str]] = {}
    for part, entries_of in zip(parts, by_part, strict=True):
        for layer, entries in entries_of.items():
            stays = rank == 0 and part.weight == 1.0 and layer not in shared
            if not stays and (kind := _kind_without_sum(entries)):
                refused.setdefault((part.field, part.name, kind), []).append(layer)
    problems = [
        f"{field} ({name}) is {kind} in {_listed(found)}, which is no difference that can be added, scaled or reduced "
        "without the base model: leave it out, or put it on the model by itself."
        for (field, name, kind), found in refused.items()
    ]
    problems += [problem for layer in shared for problem in _unlike(layer, parts, by_part)][:LISTED]
    raise_if_any(SUBJECT, problems)


def _kind_without_sum(entries: Entries) -> str:
    """What a layer's adapter is, where it cannot be added; empty where it can."""
    if "set_weight" in entries:
        return "a replaced weight"
    own = _adapter_entries(entries)
    if not own:
        return ""
    adapter = adapter_from_tensors(own)
    if adapter is None:
        return f"of an unknown kind ({', '.join(sorted(own))})"
    return adapter.names.title if adapter.needs_weight else ""


def _unlike(layer: str, parts: Sequence[Part], by_part: Sequence[Mapping[str, Entries]]) -> list[str]:
    shapes = {}
    for part, entries in zip(parts, by_part, strict=True):
        if layer in entries and not _kind_without_sum(entries[layer]):
            matrix = _matrix(entries[layer], torch.device("cpu"))
            if matrix is not None:
                shapes.setdefault(_shape(matrix), part)
    if len(shapes) < 2:
        return []
    (one, first), (other, second) = list(shapes.items())[:2]
    return [
        f"{layer} is {one[0]} x {one[1]} in {first.field} ({first.name}) and {other[0]} x {other[1]} in {second.field} "
        f"({second.name}): they are for different models."
    ]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


# ---------------------------------------------------------------- what is said about it


def _metadata(parts: Sequence[Part], result: _Sum, name: str) -> dict[str, str]:
    """The first part's metadata, true for the merged LoRA. Ranks that differ are "Dynamic", as kohya writes them."""
    first = getattr(parts[0].lora, "metadata", {})
    kept = {key: value for key, value in first.items() if not key.startswith(OF_THE_FILE)}
    if kept.get("ss_network_module", "").startswith("lycoris") and len(result.ranks) > result.kept_as_they_are:
        kept["ss_network_module"] = "networks.lora"
    if arguments := _json_object(kept.pop("ss_network_args", "")):
        kept["ss_network_args"] = json.dumps({k: v for k, v in arguments.items() if k not in OF_THE_SHAPE})
    merged = {
        "ss_network_dim": _one_or_dynamic(result.ranks.values()),
        "ss_network_alpha": _one_or_dynamic(result.alphas.values()),
        "ss_output_name": name,
        "modelspec.title": name,
        "modelspec.merged_from": ", ".join(part.name for part in parts),
        "modelspec.description": "Sum of " + _said(parts),
        "modelspec.date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return {**kept, **{key: value for key, value in merged.items() if value}}


def _json_object(text: str) -> dict[str, object]:
    """What a file's metadata says in JSON; empty where it is something else, as strangers' files may be."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _precision(parts: Sequence[Part]) -> str | None:
    """The number format of the merged LoRA's file: one that holds every part's; None where no part has its own."""
    if not any(getattr(part.lora, "precision", None) for part in parts):
        return None
    dtype = _joint(usual_dtype(part.lora) for part in parts)
    return next((name for name, each in DTYPES.items() if each == dtype), None)


def _one_or_dynamic(values: Iterable[float]) -> str:
    distinct = set(values)
    return "Dynamic" if len(distinct) > 1 else "".join(str(value) for value in distinct)


def _said(parts: Sequence[Part]) -> str:
    return ", ".join(f"{part.weight:g} x {part.name}" for part in parts)


def _report(parts: Sequence[Part], result: _Sum) -> str:
    ranks = result.ranks.values()
    span = "" if not ranks else f", rank {min(ranks)}" + (f" to {max(ranks)}" if len(set(ranks)) > 1 else "")
    size = sum(tensor.numel() for tensor in result.tensors.values())
    lines = [f"Merged {_said(parts)}: {len(result.ranks)} layers{span}, {size:,} numbers"]
    if result.kept_as_they_are:
        lines.append(f"As they were: {result.kept_as_they_are} layers that one LoRA alone has")
    if result.errors:
        worst = sorted(result.errors.items(), key=lambda item: -item[1])[:LISTED]
        lines.append(
            f"Relative error of rank {result.limit}: {result.error:.2%} in all {len(result.errors)} reduced layers"
        )
        lines.append("Largest: " + ", ".join(f"{layer} {error:.2%}" for layer, error in worst))
    elif result.limit:
        lines.append(f"No layer had a rank above {result.limit}: nothing was lost.")
    return "\n".join(lines)
