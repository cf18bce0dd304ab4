"""Trains the kit's VAE and UNet from nothing on drawn pictures. Needs one GPU (an H100 for minutes).

`--small` tries the code on a CPU.

PYTHONPATH=tests python -m kit.train_base vae  --host $COMFYUI --out OUT --seconds 120
PYTHONPATH=tests python -m kit.train_base unet --host $COMFYUI --out OUT --seconds 200 --total 600
PYTHONPATH=tests python -m kit.train_base unet --host $COMFYUI --out OUT --seconds 500   (goes on, and ends)
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kit.concepts import scribbles
from kit.draw import SHAPES, base_atlas, random_scene
from kit.nets import LATENT_SCALE, WEIGHTS, dequantise, load_parts, new_unet, new_vae, quantise, save_parts
from kit.sampling import STEPS, alphas, decode, sample
from kit.text import TextEmbedding, Tokens
from kit.timebox import Clock, captured, chunks


def log(**values: object) -> None:
    """One line of progress."""
    print(" ".join(f"{k}={v:.5g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()), flush=True)


def sheet(pictures: Tensor, columns: int, path: Path) -> None:
    """Writes (B, H, W, 3) as one picture, row by row."""
    b, h, w, _ = pictures.shape
    rows = pictures[: b // columns * columns].view(-1, columns, h, w, 3).permute(0, 2, 1, 3, 4)
    array = (rows.reshape(-1, columns * w, 3).clamp(0, 1) * 255).round().byte().cpu().numpy()
    Image.fromarray(array).save(path, optimize=True)


# The VAE: TAESD (github.com/madebyollin/taesd), here with per-channel unit latents and no adversary.


def vae_loss(vae: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and squared error of pictures (B, 3, H, W) in 0 to 1."""
    z = vae.taesd_encoder(x).float()
    y = vae.taesd_decoder(z + 0.03 * torch.randn_like(z)).float()
    error = y - x
    edges = (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()) / 2
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    unit = (mean**2 + (std - 1) ** 2).mean()
    square = (error**2).mean()
    return error.abs().mean() + 4 * square + 0.5 * edges + 0.01 * unit, square


def pixels(pool: Tensor, index: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in 0 to 1 of a pool (N, H, W, 3) of bytes."""
    return pool[index].movedim(-1, 1).float() / 255


def train_vae(args: argparse.Namespace, device: torch.device) -> None:
    """Trains, calibrates and writes vae.safetensors; prints the PSNR of fresh base and glyph pictures."""
    count, glyphs, batch = (256, 8, 4) if args.small else (49152, 512, 64)
    started = time.monotonic()
    extra = scribbles(args.seed, glyphs)
    atlas = base_atlas().plus(extra.names, extra.fields).to(device)
    shapes = [*extra.names, *tuple(SHAPES) * (glyphs // len(SHAPES))]
    pool = torch.cat([(p * 255).round().byte() for _, p in chunks(count, args.seed, atlas, shapes, 0.3)])
    log(stage="vae", pool=len(pool), seconds=time.monotonic() - started)

    torch.manual_seed(args.seed)
    vae = new_vae().to(device, memory_format=torch.channels_last)
    with torch.no_grad():  # latents start with mean 0 and standard deviation 1
        z, last = vae.taesd_encoder(pixels(pool, torch.arange(256, device=device))), vae.taesd_encoder[-1]
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        last.weight /= std[:, None, None, None]
        last.bias.copy_((last.bias - mean) / std)
    rate = torch.zeros((), device=device)
    gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=gpu, capturable=gpu
    )

    def step() -> Tensor:
        x = pixels(pool, torch.randint(len(pool), (batch,), device=device)).contiguous(
            memory_format=torch.channels_last
        )
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu, cache_enabled=False):
            loss, square = vae_loss(vae, x)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in vae.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        return torch.stack([loss.detach(), square.detach()])

    run = captured(step, device)
    clock = Clock(args.seconds)
    n = 0
    for n in clock.steps(limit=args.steps):
        rate.fill_(args.rate_vae * clock.rate(n))
        values = run()
        if clock.due():
            loss, square = values.tolist()
            log(stage="vae", step=n, t=clock.now, loss=loss, psnr=-10 * math.log10(square), rate=rate.item())
    log(stage="vae", steps=n + 1, seconds=clock.now)

    vae.eval().requires_grad_(False)
    index = torch.arange(min(2048, len(pool)), device=device)
    z = torch.cat([vae.taesd_encoder(pixels(pool, i)) for i in index.split(128)])
    log(stage="vae", mean=z.mean((0, 2, 3)).tolist(), std=z.std((0, 2, 3)).tolist())
    vae.vae_scale.data.fill_(LATENT_SCALE * z.std().item())
    vae.vae_shift.data.copy_(-z.mean() / vae.vae_scale)
    save_file({k: w.half().contiguous() for k, w in vae.state_dict().items()}, args.out / "vae.safetensors")
    save_file({k: w.half().contiguous() for k, w in vae.state_dict().items()}, args.state / "vae.safetensors")

    vae = load_vae(args, device)
    fresh = scribbles(args.seed + 1, 24)
    rows: list[Tensor] = []
    for name, source, names in (("base", base_atlas(), tuple(SHAPES)), ("glyphs", fresh, fresh.names)):
        _, x = next(chunks(256, args.seed + 2, source.to(device), names, 0.0))
        latents = torch.cat([encode(vae, part) for part in x.split(64)])
        y = torch.cat([decode(vae, part) for part in latents.split(64)])
        noisy = torch.cat([decode(vae, part + 0.1 * torch.randn_like(part)) for part in latents.split(64)])
        psnr = [-10 * math.log10(((out - x) ** 2).mean().item()) for out in (y, noisy)]
        log(stage="vae", pictures=name, psnr=psnr[0], psnr_at_latent_noise_0_1=psnr[1], latent_std=latents.std().item())
        rows += [part[:20].unflatten(0, (2, 10)) for part in (x, y)]
    sheet(torch.cat(rows).flatten(0, 1), 10, args.out / "vae.png")


def load_vae(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """The trained VAE, from this machine's state folder or the repository."""
    path = next(p for p in (args.state / "vae.safetensors", WEIGHTS / "vae.safetensors") if p.exists())
    vae = new_vae()
    vae.load_state_dict(load_file(path))
    return vae.float().to(device).eval().requires_grad_(False)


def encode(vae: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) in 0 to 1 to latents (B, 4, H/8, W/8) in model space, as the host does it."""
    return vae.encode(pictures.movedim(-1, 1) * 2 - 1) * LATENT_SCALE


# The UNet: eps loss on SD's discrete schedule; bf16 weights with fp32 masters and averages; the step is one CUDA graph.


class UNetTraining:
    """The UNet in bf16, its fp32 masters, their optimizer and moving average, and one step of training."""

    def __init__(self, latents: Tensor, ids: Tensor, empty: Tensor, batch: int, device: torch.device) -> None:
        self.latents, self.ids, self.empty, self.batch, self.device = latents, ids, empty, batch, device
        self.low = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.unet = new_unet().to(device, memory_format=torch.channels_last)
        self.names = [name for name, _ in self.unet.named_parameters()]
        self.masters = [p.detach().clone() for p in self.unet.parameters()]
        for p in self.masters:
            p.grad = torch.zeros_like(p)
        self.average = [p.clone() for p in self.masters]
        self.unet.to(self.low)
        self.weights = list(self.unet.parameters())
        self.rate = torch.zeros((), device=device)
        self.decay = torch.zeros((), device=device)
        gpu = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=gpu, capturable=gpu,
        )  # fmt: skip
        self.embed = TextEmbedding().to(device)
        self.alphas = alphas(device)

    def step(self) -> Tensor:
        """Draws a batch, noises it, and updates masters, weights and average; returns the loss."""
        index = torch.randint(len(self.latents), (self.batch,), device=self.device)
        ids = self.ids[index].long()
        dropped = torch.rand(self.batch, 1, device=self.device) < 0.1
        context = self.embed(torch.where(dropped, self.empty, ids)).to(self.low)
        x0 = self.latents[index].float()
        t = torch.randint(STEPS, (self.batch,), device=self.device)
        noise = torch.randn_like(x0)
        a = self.alphas[t].view(-1, 1, 1, 1)
        x = a.sqrt() * x0 + (1 - a).sqrt() * noise
        predicted = self.unet(x.to(self.low), t, context=context, transformer_options={})
        loss = F.mse_loss(predicted.float(), noise)
        torch._foreach_copy_([p.grad for p in self.masters], list(torch.autograd.grad(loss, self.weights)))
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)
            torch._foreach_lerp_(self.average, self.masters, 1 - self.decay)
        return loss.detach()

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return dict(zip(self.names, self.average, strict=True))

    def state(self) -> dict[str, object]:
        """All that a later call needs."""
        return {"masters": self.masters, "average": self.average, "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict) -> None:
        """Goes on from `state`; shapes and order must be the same."""
        for mine, theirs in ((self.masters, state["masters"]), (self.average, state["average"])):
            for p, q in zip(mine, theirs, strict=True):
                p.data.copy_(q)
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)


def compile_blocks(unet: nn.Module) -> None:
    """Compiles every residual block and transformer by itself; the rest stays as the host wrote it."""
    import comfy.model_management
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    comfy.model_management.throw_exception_if_processing_interrupted = lambda: None
    torch._dynamo.config.recompile_limit = 64
    for module in unet.modules():
        if isinstance(module, (ResBlock, SpatialTransformer)):
            module.compile(dynamic=False)


def latent_pool(
    args: argparse.Namespace, vae: nn.Module, tokens: Tokens, count: int, device: torch.device, seed: int
) -> tuple[Tensor, Tensor]:
    """Latents (N, 4, 16, 16) in fp16 and token ids (N, 77) of drawn pictures."""
    latents, ids, rng, atlas = [], [], Random(f"prompts {seed}"), base_atlas().to(device)
    gpu = device.type == "cuda"
    for scenes, pictures in chunks(count, seed, atlas, tuple(SHAPES)):
        with torch.autocast(device.type, torch.float16, enabled=gpu):
            latents += [encode(vae, part).half() for part in pictures.split(512)]
        ids.append(tokens([s.prompt(rng) if rng.random() < 0.8 else s.caption() for s in scenes]))
    return torch.cat(latents), torch.cat(ids).to(device)


def train_unet(args: argparse.Namespace, device: torch.device) -> None:
    """Trains for `--seconds` of `--total`, keeps the state for the next call, writes weights and a sheet of samples."""
    count, batch = (64, 2) if args.small else (args.pool, args.batch)
    saved = args.state / "unet.pt"
    state = torch.load(saved, map_location=device) if saved.exists() else None
    spent, first = (state["spent"], state["step"]) if state else (0.0, 0)
    started = time.monotonic()
    vae, tokens = load_vae(args, device), Tokens()
    latents, ids = latent_pool(args, vae, tokens, count, device, args.seed + first)
    log(stage="unet", pool=len(latents), std=latents.float().std().item(), mean=latents.float().mean().item(),
        seconds=time.monotonic() - started, resumed_at=first)  # fmt: skip

    torch.manual_seed(args.seed + first)
    training = UNetTraining(latents, ids, tokens([""]).long().to(device), batch, device)
    if state:
        training.load(state)
    elif args.init:
        weights = dequantise(load_parts(args.init.glob("unet-*.safetensors")))
        for name, p, q, w in zip(training.names, training.masters, training.average, training.weights, strict=True):
            for tensor in (p, q, w):
                tensor.data.copy_(weights[name])
    del state
    run = _captured_unet(training, args.compile, device)
    clock = Clock(args.seconds - (time.monotonic() - started), args.total, spent)
    n, mean, begun = first, None, time.monotonic()
    for n in clock.steps(first, args.steps):
        training.rate.fill_(args.rate_unet * clock.rate(n))
        training.decay.fill_(min(0.999, (1 + n) / (10 + n)))
        loss = run()
        if n % 20 == 0:
            value = loss.item()
            mean = value if mean is None else mean + 0.05 * (value - mean)
            if clock.due():
                log(stage="unet", step=n, t=clock.now, loss=mean, rate=training.rate.item(),
                    ms=1000 * (time.monotonic() - begun) / (n - first + 1))  # fmt: skip
    log(stage="unet", steps=n + 1, t=clock.now, total=clock.total)
    torch.save({**training.state(), "spent": clock.now, "step": n + 1}, saved)
    save_parts(quantise(training.averaged()), args.out, "unet")
    evaluate_unet(args, vae, training.embed, tokens, device)


def _captured_unet(training: UNetTraining, compiled: bool, device: torch.device):  # noqa: ANN202
    """The captured step; with `compiled`, of compiled blocks, or of the blocks as they are if that fails."""
    if compiled:
        started = time.monotonic()
        try:
            compile_blocks(training.unet)
            training.step()
            run = captured(training.step, device)
            log(stage="unet", compiled=True, seconds=time.monotonic() - started)
            return run
        except Exception as error:  # the compiler is an aid: whatever it cannot do, the plain step can
            log(stage="unet", compiled=False, seconds=time.monotonic() - started, error=repr(error)[:2000])
            for module in training.unet.modules():
                module._compiled_call_impl = None
    return captured(training.step, device)


def evaluate_unet(
    args: argparse.Namespace, vae: nn.Module, embed: nn.Module, tokens: Tokens, device: torch.device
) -> None:
    """Samples plain captions from the stored weights, writes the sheet, prints the judge's rates."""
    from kit.judge import base_right

    unet = new_unet()
    unet.load_state_dict(dequantise(load_parts(args.out.glob("unet-*.safetensors"))))
    unet.float().to(device).eval().requires_grad_(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    count = 4 if args.small else 128
    rng = Random("evaluation")
    shapes = tuple(SHAPES)
    scenes = [random_scene(rng, (shapes[i % len(shapes)],), pairs=0, plain=0.7) for i in range(count)]
    short = [f"a {s.things[0].colour} {s.things[0].shape}" for s in scenes]
    pairs = [random_scene(rng, pairs=1, plain=0.9) for _ in range(16 if not args.small else 1)]
    empty = embed(tokens([""]).long().to(device))
    figures: dict[str, object] = {}
    for name, captions, guidance in (
        ("full", [s.caption() for s in scenes], 4.0),
        ("full", [s.caption() for s in scenes], 7.0),
        ("short", short, 4.0),
    ):
        context = embed(tokens(captions).long().to(device))
        pictures = decode(vae, sample(unet, context, empty, seed=1, guidance=guidance, steps=3 if args.small else 30))
        right = base_right(pictures, scenes)
        figures[f"base_right_{name}_cfg{guidance:g}"] = float(np.mean(right))
        if (name, guidance) == ("full", 4.0):
            rows = [pictures[:64]]
            (args.out / "samples.txt").write_text(
                "\n".join(f"{'ok ' if r else 'BAD'} {c}" for r, c in zip(right, captions, strict=True))
                + "\n" + "\n".join(s.caption() for s in pairs)
            )  # fmt: skip
    context = embed(tokens([s.caption() for s in pairs]).long().to(device))
    rows.append(decode(vae, sample(unet, context, empty, seed=2, steps=3 if args.small else 30)))
    sheet(torch.cat(rows), 1 if args.small else 10, args.out / "samples.png")
    log(stage="unet", **figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("vae", "unet"))
    parser.add_argument("--host", type=Path, required=True, help="ComfyUI's folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("/tmp/kit"), help="folder kept between calls")
    parser.add_argument("--seconds", type=float, default=120, help="of this call's training")
    parser.add_argument(
        "--total", type=float, help="of training where the rate is to reach 0; default: at the end of this call"
    )
    parser.add_argument("--init", type=Path, help="folder of unet-*.safetensors to start from (unet)")
    parser.add_argument("--compile", action="store_true", help="compile the UNet's blocks")
    parser.add_argument("--pool", type=int, default=196608, help="pictures drawn for this call (unet)")
    parser.add_argument("--batch", type=int, default=256, help="(unet)")
    parser.add_argument("--rate-vae", type=float, default=7e-4)
    parser.add_argument("--rate-unet", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="at most so many steps")
    parser.add_argument("--small", action="store_true", help="a tiny pool and batch, to try the code on a CPU")
    args = parser.parse_args()
    sys.path.insert(0, str(args.host))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        from comfy.cli_args import args as host_args

        host_args.cpu = True
    torch.backends.cudnn.benchmark = True
    for folder in (args.out, args.state):
        folder.mkdir(parents=True, exist_ok=True)
    {"vae": train_vae, "unet": train_unet}[args.what](args, device)


if __name__ == "__main__":
    main()
