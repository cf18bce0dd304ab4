"""Full-size models of random weights for `bench speed` and `bench memory`, as files that a ComfyUI loads.

The shapes come from the host's own classes, built without storage; the values are drawn where a GPU is and scaled so
that activations stay finite. All is bf16, but for Flux's T5-XXL (fp8, as most people load it). What is written:

sd15    a checkpoint with CLIP-L and the KL VAE                       2.1 GB
sdxl    a checkpoint with CLIP-L, CLIP-G and the KL VAE               7 GB
flux    the 12 B transformer; CLIP-L, T5-XXL and the VAE beside it    24 + 5 GB
kit     nothing: the demo kit's checkpoint

python -m bench.models --host-dir HOST --workspace DIR --models sd15 sdxl     writes files, prints facts as JSON
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from host import has_cuda
from kit.nets import UNET as KIT_UNET

FILE = "kiln-bench-{}.safetensors"
GAIN = 0.5  # of a layer: residual branches that add up stay small
FACTS = "FACTS "  # begins the line that holds the facts

SD15_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4), "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "context_dim": 768, "num_heads": 8, "num_head_channels": -1,
    "use_linear_in_transformer": False, "legacy": False,
}  # fmt: skip
SDXL_UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2, 2, 2],
    "channel_mult": (1, 2, 4), "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
    "use_spatial_transformer": True, "context_dim": 2048, "num_heads": -1, "num_head_channels": 64,
    "use_linear_in_transformer": True, "legacy": False, "num_classes": "sequential", "adm_in_channels": 2816,
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "hidden_size": 3072,
    "num_heads": 24, "mlp_ratio": 4.0, "depth": 19, "depth_single_blocks": 38, "axes_dim": [16, 56, 56],
    "theta": 10000, "qkv_bias": True, "context_in_dim": 4096, "vec_in_dim": 768, "guidance_embed": True,
    "txt_ids_dims": [],
}  # fmt: skip
VAE = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
    "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Model:
    """One of the models that are trained."""

    name: str
    side: int
    """pixels of a training picture's side"""
    steps: int
    """of a timed run of a trainer that captures its step: enough for about two seconds on an H100"""
    slow_steps: int
    """of the others, which need less warm-up"""
    tokens: int
    """of a caption, as the model takes it"""
    network: dict[str, Any]
    """the host's settings of its network"""

    @property
    def is_flux(self) -> bool:
        return self.name == "flux"

    @property
    def checkpoint(self) -> str:
        """The file of the network, in models/checkpoints or (Flux) models/diffusion_models."""
        return "kiln-kit.safetensors" if self.name == "kit" else FILE.format(self.name)

    def path(self, workspace: Path) -> Path:
        folder = "diffusion_models" if self.is_flux else "checkpoints"
        return workspace / "models" / folder / self.checkpoint


MODELS = {
    "kit": Model("kit", 128, 24, 12, 77, KIT_UNET),
    "sd15": Model("sd15", 512, 90, 22, 77, SD15_UNET),
    "sdxl": Model("sdxl", 1024, 50, 14, 77, SDXL_UNET),
    "flux": Model("flux", 1024, 36, 9, 256, FLUX),
}


# ---------------------------------------------------------------- shapes


def network(model: Model) -> nn.Module:
    """The host's network of a model, without storage. The host must be on sys.path."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    kind = Flux if model.is_flux else UNetModel
    operations = comfy.ops.disable_weight_init
    return kind(**model.network, device="meta", dtype=torch.bfloat16, operations=operations).requires_grad_(False)


def files(model: Model) -> dict[str, tuple[dict[str, Tensor], torch.dtype]]:
    """Every file of a model under models/: its tensors, without storage, and their type."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models
    from comfy.text_encoders.sd3_clip import T5XXLModel

    where = {"device": "meta", "dtype": torch.bfloat16}
    if model.is_flux:
        clip_l = comfy.sd1_clip.SDClipModel(**where).transformer.state_dict()
        t5 = T5XXLModel(**where).transformer.state_dict()
        return {
            f"text_encoders/{FILE.format('clip-l')}": (clip_l, torch.bfloat16),
            f"text_encoders/{FILE.format('t5')}": (t5, torch.float8_e4m3fn),
            f"vae/{FILE.format('ae')}": (vae(16), torch.bfloat16),
            f"diffusion_models/{model.checkpoint}": (network(model).state_dict(), torch.bfloat16),
        }
    is_xl = model.name == "sdxl"
    kind = comfy.supported_models.SDXL if is_xl else comfy.supported_models.SD15
    config = kind({**model.network})
    clip = comfy.sdxl_clip.SDXLClipModel(**where) if is_xl else comfy.sd1_clip.SD1ClipModel(**where)
    checkpoint = {
        **config.process_unet_state_dict_for_saving(dict(network(model).state_dict())),
        **config.process_clip_state_dict_for_saving(dict(clip.state_dict())),
        **config.process_vae_state_dict_for_saving(vae(4)),
    }
    return {f"checkpoints/{model.checkpoint}": (checkpoint, torch.bfloat16)}


def vae(channels: int) -> dict[str, Tensor]:
    """The KL VAE's tensors, without storage: with 4 channels SD's, with 16 Flux's (which has no quant_conv)."""
    from comfy.ldm.models.autoencoder import AutoencoderKL, AutoencodingEngine

    config = {**VAE, "z_channels": channels}
    with torch.device("meta"):
        if channels == 4:
            return dict(AutoencoderKL(ddconfig=config, embed_dim=4).state_dict())
        parts = "comfy.ldm.modules.diffusionmodules.model"
        engine = AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": f"{parts}.Encoder", "params": config},
            decoder_config={"target": f"{parts}.Decoder", "params": config},
        )
    return dict(engine.state_dict())


# ---------------------------------------------------------------- values


def draw(name: str, like: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Random values for a tensor: matrices N(0, (GAIN / sqrt(inputs))^2), norms near 1, biases near 0."""
    if not like.is_meta:  # a table of positions, say
        return like
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    values = torch.randn(like.shape, device=device, dtype=torch.bfloat16)
    if like.dim() > 1:
        values *= GAIN / math.sqrt(like[0].numel())
    else:
        values *= 0.02
        values += 1.0 if name.endswith((".weight", ".scale")) else 0.0
    return values.to(dtype)


def write(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
    """Draws and writes a safetensors file a tensor at a time, so that memory holds one of them."""
    names = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.int64: "I64", torch.float32: "F32"}
    header: dict[str, Any] = {}
    end = 0
    for name, like in tensors.items():
        kind = like.dtype if not like.is_meta or not like.is_floating_point() else dtype
        start, end = end, end + like.numel() * kind.itemsize
        header[name] = {"dtype": names[kind], "shape": list(like.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.manual_seed(0)
    with part.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, like in tensors.items():
            values = draw(name, like, dtype, device).reshape(-1).view(torch.uint8).cpu()
            rest = memoryview(values.numpy().data)
            while rest:  # one write takes at most 2 GiB
                rest = rest[file.write(rest) :]
    part.replace(path)


def write_missing(model: Model, workspace: Path, say: Callable[[str], None]) -> None:
    """Writes the files of a model that are not there yet."""
    if model.name == "kit":
        return
    device = torch.device("cuda" if has_cuda() else "cpu")
    for name, (tensors, dtype) in files(model).items():
        path = workspace / "models" / name
        if not path.exists():
            started = time.monotonic()
            write(path, tensors, dtype, device)
            say(f"wrote {path.name}, {path.stat().st_size / 1e9:.1f} GB, in {time.monotonic() - started:.0f} s")


# ---------------------------------------------------------------- arithmetic


def forward_flops(model: Model) -> int:
    """Floating point operations of one forward pass of one picture: matrix products, convolutions and attention."""
    import comfy.model_management
    from comfy.ldm.modules.attention import attention_pytorch
    from torch.utils.flop_counter import FlopCounterMode

    side = model.side // 8
    like = {"device": "meta", "dtype": torch.bfloat16}
    options = {"optimized_attention_override": lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)}
    x = torch.empty(1, model.network["in_channels"], side, side, **like)
    time_ = torch.empty(1, **like)
    text = torch.empty(1, model.tokens, model.network["context_in_dim" if model.is_flux else "context_dim"], **like)
    more: dict[str, Any] = {}
    if model.is_flux:
        more = {"y": torch.empty(1, 768, **like), "guidance": torch.empty(1, **like)}
    elif width := model.network.get("adm_in_channels"):
        more = {"y": torch.empty(1, width, **like)}
    net = network(model)
    comfy.model_management.in_training = True  # plain torch in place of fused kernels
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x, time_, context=text, transformer_options=options, **more)
    finally:
        comfy.model_management.in_training = False
    return counter.get_total_flops()


def matmul_rate(device: torch.device) -> float:
    """Operations per second of a large matrix product: bf16, 8192 x 8192 x 8192 (on a processor fp32, 2048)."""
    on_gpu = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if on_gpu else (2048, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        torch.mm(a, b)
    rates = []
    for _ in range(3):
        count = 20 if on_gpu else 2
        _wait(device)
        started = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b)
        _wait(device)
        rates.append(count * 2 * side**3 / (time.perf_counter() - started))
    return max(rates)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def parameters(model: Model) -> int:
    return sum(parameter.numel() for parameter in network(model).parameters())


def use_host(host_dir: Path) -> None:
    """Puts ComfyUI on this process's path, on the processor: here it only gives shapes."""
    sys.path.insert(0, str(host_dir))
    from comfy.cli_args import args

    args.cpu = True


def device_facts() -> dict[str, Any]:
    """What the figures were taken on."""
    if has_cuda():
        free, total = torch.cuda.mem_get_info()
        return {"device": torch.cuda.get_device_name(), "gpu_bytes": total, "gpu_bytes_free": free}
    return {"device": platform.processor() or platform.machine()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host-dir", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, required=True)
    options = parser.parse_args()
    use_host(options.host_dir)
    facts: dict[str, Any] = {**device_facts(), "models": {}}
    for model in map(MODELS.__getitem__, options.models):
        write_missing(model, options.workspace, lambda text: print(text, flush=True))
        facts["models"][model.name] = {
            "parameters": parameters(model), "forward_flops": forward_flops(model), "side": model.side,
        }  # fmt: skip
    facts["matmul_flops"] = matmul_rate(torch.device("cuda" if has_cuda() else "cpu"))
    print(FACTS + json.dumps(facts), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
