"""A LoRA described in words."""

from collections import Counter
from collections.abc import Mapping

import torch

from .keys import ALPHA, CHANGES, DOWN, MAGNITUDE, is_no_adapters, split_key

KINDS = {
    "dora_scale": "DoRA",
    MAGNITUDE: "DoRA",
    "lora_mid.weight": "LoCon (Tucker)",
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "lokr_w1_a": "LoKr",
    "oft_blocks": "OFT",
    "a1.weight": "GLoRA",
    DOWN: "LoRA",
    **dict.fromkeys(CHANGES, "differences"),
}
"""Entry of a layer -> name of the adapter; the first entry present counts."""


def describe_lora(lora: Mapping[str, torch.Tensor]) -> str:
    """A LoRA's kind, ranks, alphas, layers, number formats and base model, one line each."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in lora.items():
        parts = split_key(key)
        if parts is not None:
            modules.setdefault(parts[0], {})[parts[1]] = tensor
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
    if others := [key for key in lora if is_no_adapters(key)]:
        lines.append(f"Beside adapters: {len(others)} entries, such as {others[0]}")
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
