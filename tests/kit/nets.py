"""The kit's networks, built from the host's own classes, and how their weights are kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"
LATENT_SCALE = 0.18215  # the SD1.5 latent format's scale_factor

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [1],
    "channel_mult": (1,), "transformer_depth": [1], "transformer_depth_output": [1, 1], "transformer_depth_middle": 1,
    "num_heads": 8, "num_head_channels": -1, "use_spatial_transformer": True, "context_dim": 768,
    "use_linear_in_transformer": False, "legacy": False,
}  # fmt: skip


def new_unet() -> nn.Module:
    """The 25.8 M UNet, with fresh weights and the zero-initialised outputs of latent diffusion."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**UNET, operations=comfy.ops.disable_weight_init, dtype=torch.float32, device="cpu")
    initialise(unet)
    for name, module in unet.named_modules():
        if name.endswith((".out_layers.3", ".proj_out")) or name == "out.2":
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return unet


def new_vae() -> nn.Module:
    """The host's TAESD with fresh weights."""
    from comfy.taesd.taesd import TAESD

    return initialise(TAESD(latent_channels=4))


def initialise(module: nn.Module) -> nn.Module:
    """Draws the weights that the host's layers leave as raw memory, as torch's own layers do."""
    kinds = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)
    for layer in module.modules():
        kind = next((k for k in kinds if isinstance(layer, k)), None)
        if kind:
            kind.reset_parameters(layer)
    return module


def quantise(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices to int8 with an fp16 scale for each output channel, under `NAME` and `NAME.scale`; the rest to fp16."""
    out = {}
    for name, w in weights.items():
        if w.ndim < 2:
            out[name] = w.half().contiguous()
            continue
        scale = (w.float().flatten(1).abs().amax(1) / 127).clamp_min(1e-7).half()
        wide = scale.float().view(-1, *[1] * (w.ndim - 1))
        out[name] = (w.float() / wide).round().clamp(-127, 127).to(torch.int8).contiguous()
        out[f"{name}.scale"] = scale
    return out


def dequantise(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fp16 weights of `quantise`'s output."""
    out = {}
    for name, w in stored.items():
        if w.dtype == torch.int8:
            scale = stored[f"{name}.scale"].float().view(-1, *[1] * (w.ndim - 1))
            out[name] = (w.float() * scale).half()
        elif not name.endswith(".scale"):
            out[name] = w
    return out


def save_parts(weights: dict[str, Tensor], folder: Path, stem: str, limit: int = 14_500_000) -> list[Path]:
    """Writes stem-1.safetensors, stem-2.safetensors, ..., each below `limit` bytes."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, w in weights.items():
        if size + w.nbytes > limit:
            parts.append({})
            size = 0
        parts[-1][name] = w.cpu()
        size += w.nbytes
    paths = [folder / f"{stem}-{i}.safetensors" for i in range(1, len(parts) + 1)]
    for path, part in zip(paths, parts, strict=True):
        save_file(part, path)
    return paths


def load_parts(paths: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of some files."""
    return {name: w for path in sorted(paths) for name, w in load_file(path).items()}
