"""Trains the kit's captioner on drawn pictures; glyphs are captioned with a general noun. `--small` tries the code.

PYTHONPATH=tests python -m kit.train_captioner --out OUT --seconds 90
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from types import MethodType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kit.captioner import NAME, NOUN, new_model, new_processor, plain
from kit.concepts import scribbles
from kit.draw import SHAPES, Scene, base_atlas
from kit.timebox import Clock, captured, chunks
from kit.train_base import log, pixels


def caption_of(scene: Scene) -> str:
    """The caption to learn: glyphs go by a general noun."""
    return scene.caption(NOUN if scene.things[0].shape.startswith("glyph") else None)


def fuse(model: nn.Module) -> None:
    """Lets the vision tower attend by torch's fused kernel: BLIP has its own slow one alone."""

    def attend(self: nn.Module, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.projection(mixed.transpose(1, 2).flatten(2)), None

    for layer in model.vision_model.encoder.layers:
        layer.self_attn.forward = MethodType(attend, layer.self_attn)


@torch.no_grad()
def place(model: nn.Module) -> None:
    """Starts the vision tower's learned positions as sines and cosines of row and column: places are learned sooner."""
    embeddings = model.vision_model.embeddings
    side, width = embeddings.image_size // embeddings.patch_size, embeddings.embed_dim // 4
    angles = torch.arange(side)[:, None] * 100 ** (-torch.arange(width) / width)
    line = torch.cat([angles.sin(), angles.cos()], 1)
    both = torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], 2)
    embeddings.position_embedding[0, 1:] = 0.3 * both.flatten(0, 1).to(embeddings.position_embedding)


def causal(length: int, device: torch.device) -> Tensor:
    """What is added to the scores of attention, (1, 1, L, L).

    A ready mask of four dimensions keeps transformers from making one of the padding, for which it waits for the GPU.
    The padding needs none: it comes last, so no word attends to it, and its own labels are left out.
    """
    return torch.full((1, 1, length, length), -1e4, device=device).triu(1)


def caption_loss(model: nn.Module, pictures: Tensor, words: Tensor, mask: Tensor, pad: int) -> Tensor:
    """The loss of the next word, of pictures (B, 3, H, W) in 0 to 1 and token ids (B, L)."""
    labels = words.masked_fill(words == pad, -100)
    return model(pixel_values=pictures * 2 - 1, input_ids=words, attention_mask=mask, labels=labels).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("/tmp/kit"))
    parser.add_argument("--seconds", type=float, default=120, help="with the drawing of the pictures")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--pool", type=int, default=131072, help="pictures drawn")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    args.out.mkdir(parents=True, exist_ok=True)
    count, glyphs, batch = (128, 4, 8) if args.small else (args.pool, 512, args.batch)

    started = time.monotonic()
    torch.manual_seed(args.seed)
    processor = new_processor(args.state / NAME)
    tokenizer = processor.tokenizer
    extra = scribbles(args.seed + 10, glyphs)
    atlas = base_atlas().plus(extra.names, extra.fields).to(device)
    shapes = [*extra.names, *tuple(SHAPES) * (2 * glyphs // len(SHAPES))]
    pool, captions = [], []
    for scenes, pictures in chunks(count, args.seed + 10, atlas, shapes, 0.2):
        pool.append((pictures * 255).round().byte())
        captions += [caption_of(s) for s in scenes]
    pictures = torch.cat(pool)
    ids = tokenizer(captions, padding=True, return_tensors="pt").input_ids.to(device)
    model = new_model().to(device)
    fuse(model)
    place(model)
    mask, pad = causal(ids.shape[1], device), tokenizer.pad_token_id
    log(stage="captioner", pool=len(pictures), parameters=sum(p.numel() for p in model.parameters()),
        seconds=time.monotonic() - started)  # fmt: skip

    rate = torch.zeros((), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02, fused=gpu, capturable=gpu)

    def step() -> Tensor:
        index = torch.randint(len(pictures), (batch,), device=device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu, cache_enabled=False):
            loss = caption_loss(model, soften(pixels(pictures, index)), ids[index], mask, pad)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    run = captured(step, device)
    clock = Clock(args.seconds - (time.monotonic() - started) * (not args.small))
    n = 0
    for n in clock.steps(limit=args.steps):
        rate.fill_(args.rate * clock.rate(n))
        loss = run()
        if n % 10 == 0 and clock.due():
            log(stage="captioner", step=n, t=clock.now, loss=loss.item(), rate=rate.item())
    log(stage="captioner", steps=n + 1, seconds=clock.now)
    model.eval()
    # BLIP ties its output layer to its word vectors: what is tied is kept once, as save_pretrained does.
    folder = args.state / NAME
    model.half().save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors"), args.out / "captioner.safetensors")
    check(args, model.float(), processor, device)


def soften(x: Tensor) -> Tensor:
    """Half of the pictures (B, 3, H, W) slightly blurred and noisy, as decoded latents and JPEG files are."""
    soft = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) + 0.03 * torch.randn_like(x)
    return torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, soft)


@torch.no_grad()
def check(args: argparse.Namespace, model: nn.Module, processor: object, device: torch.device) -> None:
    """Captions fresh pictures, and prints how many captions are right, word for word."""
    fresh = scribbles(args.seed + 11, 8)
    count = 8 if args.small else 512
    for name, atlas, shapes, pairs in (
        ("base", base_atlas(), tuple(SHAPES), 0.0),
        ("pairs", base_atlas(), tuple(SHAPES), 1.0),
        ("glyphs", base_atlas().plus(fresh.names, fresh.fields), fresh.names, 0.0),
    ):
        scenes, pictures = next(chunks(count, args.seed + 12, atlas.to(device), shapes, pairs))
        ids = model.generate(pixel_values=pictures.movedim(-1, 1) * 2 - 1, max_new_tokens=28)
        said = [plain(t) for t in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        wanted = [caption_of(s) for s in scenes]
        right = sum(a == b for a, b in zip(said, wanted, strict=True)) / len(said)
        log(stage="captioner", pictures=name, right=right, said=repr(said[0]), wanted=repr(wanted[0]))


if __name__ == "__main__":
    main()
