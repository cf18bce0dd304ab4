"""Concepts: glyphs that no base picture contains, each with a trigger word, any number of them from seeds.

PYTHONPATH=tests python -m kit.concepts --seed 7 --out DIR --count 16 --missing 4 --regularisation DIR2
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from random import Random

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kit.draw import EXTENT, SHAPES, Atlas, Scene, Thing, base_atlas, cover, field_axes, random_scene, render, segment

STROKE = 0.22  # half a stroke's width, in radii of the glyph: a small glyph's strokes are 10 px wide at 128 px
REACH = 1.12  # the farthest point of a glyph
ANCHORS = [(x, y) for x in (-0.72, 0.0, 0.72) for y in (-0.72, 0.0, 0.72)]
VIEW = 32  # side of the views that are compared
ALIKE = 0.72  # a glyph that correlates more than this with a base shape is drawn again


class Concept:
    """A glyph and its invented name, both functions of the seed alone."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trigger = _invent_word(Random(f"word {seed}"))

    @cached_property
    def field(self) -> Tensor:
        """The glyph's signed distance field, (G, G)."""
        rng = Random(f"glyph {self.seed}")
        while True:
            field = _scribble(rng)
            if _is_distinct(field):
                return field

    def atlas(self) -> Atlas:
        """The base shapes and this glyph, named by its trigger."""
        return base_atlas().plus([self.trigger], self.field[None])

    def scenes(self, seed: int, count: int) -> list[Scene]:
        """Single pictures of the glyph in many poses, colours, grounds, places and textures."""
        rng = Random(f"scenes {self.seed} {seed}")
        return [random_scene(rng, (self.trigger,), pairs=0, plain=0.75) for _ in range(count)]

    def write_dataset(
        self, folder: str | Path, seed: int = 0, count: int = 16, size: int = 128, missing_captions: int = 0
    ) -> list[Scene]:
        """Writes `count` pictures with captions; the last `missing_captions` get none."""
        scenes = self.scenes(seed, count)
        captions = [s.caption() for s in scenes[: count - missing_captions]]
        write_pictures(folder, render(scenes, self.atlas(), size), captions)
        return scenes


def write_base_pictures(folder: str | Path, seed: int, count: int, size: int = 128) -> list[Scene]:
    """Writes pictures of single base shapes with captions, as for regularisation."""
    rng = Random(f"base {seed}")
    scenes = [random_scene(rng, pairs=0) for _ in range(count)]
    write_pictures(folder, render(scenes, base_atlas(), size), [s.caption() for s in scenes])
    return scenes


def write_pictures(folder: str | Path, pictures: Tensor, captions: Sequence[str]) -> None:
    """Writes (B, H, W, 3) as 00.png, 01.png, ..., and captions beside the first of them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate((pictures * 255).round().byte().cpu().numpy()):
        Image.fromarray(picture).save(folder / f"{i:02d}.png")
        if i < len(captions):
            (folder / f"{i:02d}.txt").write_text(captions[i] + "\n", encoding="utf-8")


def scribbles(seed: int, count: int) -> Atlas:
    """Many random glyphs, quickly and unchecked, named `glyph 0`, `glyph 1`, ...: to train on, not to judge by."""
    rng = Random(f"scribbles {seed}")
    return Atlas(tuple(f"glyph {i}" for i in range(count)), torch.stack([_scribble(rng) for _ in range(count)]))


def _invent_word(rng: Random) -> str:
    onset, vowel, middle, coda = (
        "bdfgjklmnprtvz",
        "aeiou",
        ("rv", "lk", "mb", "nd", "rz", "ld", "zg", "vr"),
        "bdfgklmnpx",
    )
    return rng.choice(onset) + rng.choice(vowel) + rng.choice(middle) + rng.choice(vowel) + rng.choice(coda)


def _scribble(rng: Random) -> Tensor:
    """A connected figure of four or five thick strokes between anchors, scaled to one size."""
    x, y = field_axes()
    here = rng.choice(ANCHORS)
    visited = [here]
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for _ in range(4):
        there = rng.choice([a for a in ANCHORS if a not in visited])
        lines += _stroke(here, there, rng)
        visited.append(there)
        here = rng.choice(visited) if rng.random() < 0.4 else there
    points = [p for line in lines for p in line]
    cx, cy = ((min(p[i] for p in points) + max(p[i] for p in points)) / 2 for i in (0, 1))
    reach = max(math.hypot(px - cx, py - cy) for px, py in points)
    scale = (REACH - STROKE) / reach
    moved = [tuple(((px - cx) * scale, (py - cy) * scale) for px, py in line) for line in lines]
    return torch.stack([segment(x, y, a, b) for a, b in moved]).amin(0) - STROKE


def _stroke(
    a: tuple[float, float], b: tuple[float, float], rng: Random
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """A straight line, or an arc as eight short lines."""
    if rng.random() < 0.6:
        return [(a, b)]
    bend = rng.choice((-0.45, 0.45))
    middle = ((a[0] + b[0]) / 2 - bend * (b[1] - a[1]), (a[1] + b[1]) / 2 + bend * (b[0] - a[0]))
    curve = []
    for i in range(9):
        t = i / 8
        curve.append(tuple((1 - t) ** 2 * a[k] + 2 * t * (1 - t) * middle[k] + t * t * b[k] for k in (0, 1)))
    return list(zip(curve, curve[1:], strict=False))


def _is_distinct(field: Tensor) -> bool:
    """Whether the glyph fills its circle well, has no gaps too narrow to draw, and looks like no base shape."""
    x, y = field_axes()
    inside = field < 0
    area = inside.float().mean().item() * (2 * EXTENT) ** 2 / math.pi
    if not 0.4 < area < 0.75 or min(x[inside].std().item(), y[inside].std().item()) <= 0.45:
        return False
    wide = _grow(inside.float()[None, None])  # closing by 0.15 radii
    closed = -_grow(-wide)
    filled = (closed[0, 0] - inside.float()).mean().item() / inside.float().mean().item()
    return filled < 0.12 and _likeness(field) < ALIKE


def _grow(mask: Tensor) -> Tensor:
    """The maximum over 15 x 15 cells."""
    return F.max_pool2d(F.max_pool2d(mask, (15, 1), 1, (7, 0)), (1, 15), 1, (0, 7))


def _likeness(field: Tensor) -> float:
    """The highest correlation with a base shape over rotations, scales and small moves."""
    a = F.avg_pool2d((field < 0).float()[None], 4).flatten(1)
    a = F.normalize(a - a.mean(1, keepdim=True))
    return (a @ _base_views().T).max().item()


@cache
def _base_views() -> Tensor:
    """Centred, normalised views of every base shape, (N, 32 * 32)."""
    things = [
        Thing(shape, "red", "plain", dx, dy, r / EXTENT, math.radians(turn), 0)
        for shape in SHAPES for r in (0.8, 0.92, 1.06) for turn in range(-20, 21, 10)
        for dx in (-0.1, 0, 0.1) for dy in (-0.1, 0, 0.1)
    ]  # fmt: skip
    views = cover(things, base_atlas(), VIEW)[0].flatten(1)
    return F.normalize(views - views.mean(1, keepdim=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--missing", type=int, default=0, help="pictures without a caption")
    parser.add_argument("--regularisation", type=Path, help="folder for as many base pictures")
    args = parser.parse_args()
    concept = Concept(args.seed)
    concept.write_dataset(args.out, 0, args.count, args.size, args.missing)
    if args.regularisation:
        write_base_pictures(args.regularisation, args.seed, args.count, args.size)
    print(concept.trigger)


if __name__ == "__main__":
    main()
