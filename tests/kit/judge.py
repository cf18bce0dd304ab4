"""Says what a picture shows, by template matching alone: it knows the shapes and the palette, no model and no trainer.

The ground is the border's colour, the figure what differs from it. A bank of templates (shape x size x rotation), each
in its own round window, slides over the figure by FFT; the answer is the best normalised cross-correlation.

    PYTHONPATH=tests python -m kit.judge --evaluate [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kit.concepts import Concept
from kit.draw import COLOURS, SHAPES, Atlas, Scene, Thing, base_atlas, cover, random_scene, render, shade

SIDE = 64  # pictures are judged at this size
RADII = (0.31, 0.345, 0.385, 0.43, 0.48, 0.535, 0.595)  # of templates, in halves of the picture's side
TURNS = (-12, -4, 4, 12)  # degrees
RIVALS = (9001, 9002, 9003, 9004)  # concepts that any picture is compared with
THRESHOLD, MARGIN = 0.77, 0.03
SOFT, FULL = 0.16, 0.34  # RGB distances from the ground where the figure starts and is full


@dataclass(frozen=True)
class Bank:
    """Templates of some shapes, transformed: for each radius (S, K, SIDE, SIDE // 2 + 1), K rotations."""

    names: tuple[str, ...]
    templates: tuple[Tensor, ...]
    windows: tuple[Tensor, ...]
    areas: tuple[float, ...]


def make_bank(atlas: Atlas) -> Bank:
    """Templates of every shape of the atlas, each zero in mean and unit in norm within its window."""
    templates, windows, areas = [], [], []
    axis = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    distance = torch.hypot(axis[:, None], axis[None])
    for radius in RADII:
        window = (distance < radius * 1.22).float()
        things = [
            Thing(name, "red", "plain", 0, 0, radius, math.radians(turn), 0) for name in atlas.names for turn in TURNS
        ]
        masks = _blur(cover(things, atlas, SIDE)[0])[:, 0]
        masks = (masks - (masks * window).sum((1, 2), keepdim=True) / window.sum()) * window
        masks = masks / masks.flatten(1).norm(dim=1)[:, None, None]
        spectra = torch.fft.rfft2(torch.fft.ifftshift(masks, dim=(1, 2))).conj()
        templates.append(spectra.view(len(atlas.names), len(TURNS), SIDE, -1))
        windows.append(torch.fft.rfft2(torch.fft.ifftshift(window)).conj())
        areas.append(window.sum().item())
    return Bank(atlas.names, tuple(templates), tuple(windows), tuple(areas))


@cache
def base_bank() -> Bank:
    """The base shapes and the standing rivals."""
    rivals = [Concept(seed) for seed in RIVALS]
    return make_bank(base_atlas().plus([f"rival {c.seed}" for c in rivals], torch.stack([c.field for c in rivals])))


@cache
def concept_bank(seed: int) -> Bank:
    """One concept alone."""
    concept = Concept(seed)
    return make_bank(Atlas((concept.trigger,), concept.field[None]))


@dataclass(frozen=True)
class Match:
    """The best place of each shape in each picture: (B, S) scores, radius and rotation indices, and cell indices."""

    score: Tensor
    radius: Tensor
    turn: Tensor
    cell: Tensor


def figure(images: Tensor) -> Tensor:
    """How far each pixel is from the ground: (B, H, W, 3) in 0 to 1 to (B, SIDE, SIDE) in 0 to 1."""
    small = _resize(images)
    sides = (small[:, :, :2], small[:, :, -2:], small[..., :2], small[..., -2:])
    edge = torch.cat([side.flatten(2) for side in sides], 2)
    ground = edge.median(dim=2).values[:, :, None, None]
    return ((small - ground).norm(dim=1).sub(SOFT) / (FULL - SOFT)).clamp(0, 1)


def match(figures: Tensor, bank: Bank) -> Match:
    """Slides the bank over figures (B, SIDE, SIDE)."""
    spectrum, square = torch.fft.rfft2(figures), torch.fft.rfft2(figures**2)
    scores, turns, cells = [], [], []
    for templates, window, area in zip(bank.templates, bank.windows, bank.areas, strict=True):
        mean = torch.fft.irfft2(spectrum * window, s=(SIDE, SIDE)) / area
        energy = torch.fft.irfft2(square * window, s=(SIDE, SIDE)) - area * mean**2
        weight = energy.clamp_min(0.02 * area).rsqrt()[:, None, None]
        found = torch.fft.irfft2(spectrum[:, None, None] * templates, s=(SIDE, SIDE)) * weight
        best, cell = found.flatten(3).max(3)
        score, turn = best.max(2)
        scores.append(score)
        turns.append(turn)
        cells.append(cell.gather(2, turn[..., None])[..., 0])
    score, radius = torch.stack(scores).max(0)
    pick = radius[None]
    return Match(score, radius, torch.stack(turns).gather(0, pick)[0], torch.stack(cells).gather(0, pick)[0])


@torch.no_grad()
def shows_concept(images: Tensor, concept: Concept, chunk: int = 16) -> tuple[list[bool], list[float]]:
    """Whether each picture (B, H, W, 3) shows the concept, and how well it matches, at most 1."""
    present, scores = [], []
    for part in images.float().cpu().split(chunk):
        figures = figure(part)
        own = match(figures, concept_bank(concept.seed)).score[:, 0]
        other = match(figures, base_bank()).score.amax(1)
        present += ((own > THRESHOLD) & (own > other + MARGIN)).tolist()
        scores += own.tolist()
    return present, scores


@torch.no_grad()
def shape_and_colour(images: Tensor, chunk: int = 16) -> list[tuple[str, str]]:
    """The base shape and the colour of each picture (B, H, W, 3); the shape is "" where none matches well."""
    answers = []
    for part in images.float().cpu().split(chunk):
        bank = base_bank()
        found = match(figure(part), bank)
        best = found.score.argmax(1)
        small = _resize(part)
        for i, s in enumerate(best.tolist()):
            known = s < len(SHAPES) and found.score[i, s] > THRESHOLD
            k = s if known else int(found.score[i, : len(SHAPES)].argmax())
            inner = _inside(bank.names[k], RADII[found.radius[i, k]], TURNS[found.turn[i, k]], int(found.cell[i, k]))
            answers.append((bank.names[k] if known else "", _colour(small[i], inner)))
    return answers


def base_right(images: Tensor, expected: Sequence[Scene | tuple[str, str]]) -> list[bool]:
    """Whether each picture shows the shape and the colour of its scene's first thing (or of the given pair)."""
    wanted = [(e.things[0].shape, e.things[0].colour) if isinstance(e, Scene) else tuple(e) for e in expected]
    return [a == w for a, w in zip(shape_and_colour(images), wanted, strict=True)]


def _inside(name: str, radius: float, turn: float, cell: int) -> Tensor:
    """Where the matched shape is, its edge left out: (SIDE, SIDE) booleans."""
    mask = _eroded(name, radius, turn)
    return torch.roll(mask, (cell // SIDE - SIDE // 2, cell % SIDE - SIDE // 2), (0, 1))


@cache
def _eroded(name: str, radius: float, turn: float) -> Tensor:
    field = cover([Thing(name, "red", "plain", 0, 0, radius, math.radians(turn), 0)], base_atlas(), SIDE)[0][0, 0]
    inner = -F.max_pool2d(-field[None, None], 3, 1, 1)[0, 0]
    return inner > 0.9


@cache
def _palette() -> tuple[Tensor, list[str]]:
    names = list(COLOURS)
    points = [COLOURS[n] for n in names] + [shade(n) for n in names]
    return torch.tensor(points), names


def _colour(picture: Tensor, inside: Tensor) -> str:
    """The colour that most of the pixels inside (or their texture's darker shade) are nearest to."""
    points, names = _palette()
    pixels = picture[:, inside].T
    nearest = torch.cdist(pixels, points).argmin(1)
    votes = torch.bincount(nearest, minlength=len(points)).view(2, -1).float()
    return names[int((votes[0] + 0.5 * votes[1]).argmax())]


def _resize(images: Tensor) -> Tensor:
    return F.interpolate(images.movedim(-1, 1), size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def _blur(masks: Tensor) -> Tensor:
    kernel = torch.tensor([0.25, 0.5, 0.25])
    return F.conv2d(masks, (kernel[:, None] * kernel)[None, None], padding=1)


# The measurement.


def spoil(images: Tensor, rng: np.random.RandomState) -> Tensor:
    """Blurs by about a pixel, adds noise, and compresses as JPEG: (B, H, W, 3) to the same."""
    out = []
    for image in images:
        soft = F.avg_pool2d(image.movedim(-1, 0)[None], 3, 1, 1, count_include_pad=False)
        soft = F.interpolate(F.avg_pool2d(soft, 2), scale_factor=2, mode="bilinear")[0].movedim(0, -1)
        array = (soft.numpy() + rng.normal(0, 0.04, soft.shape)).clip(0, 1)
        file = io.BytesIO()
        Image.fromarray((array * 255).astype(np.uint8)).save(file, "JPEG", quality=60)
        out.append(torch.from_numpy(np.asarray(Image.open(file)).astype(np.float32) / 255))
    return torch.stack(out)


def evaluate(concepts: int = 24, count: int = 16, seed: int = 1) -> dict[str, float]:
    """The judge's rates on fresh pictures, as drawn and spoiled."""
    noise, rng = np.random.RandomState(seed), Random(f"judge {seed}")
    tested = [Concept(1000 + i) for i in range(concepts)]
    drawn = [render(c.scenes(seed, count), c.atlas()) for c in tested]
    scenes = [random_scene(rng, pairs=0) for _ in range(concepts * count)]
    base = render(scenes, base_atlas())
    figures: dict[str, float] = {}
    for name, change in (("drawn", lambda p: p), ("spoiled", lambda p: spoil(p, noise))):
        own = [change(p) for p in drawn]
        plain = change(base)
        others = torch.cat([p[:3] for p in own])
        right, wrong, wrong_base = [], [], []
        for i, c in enumerate(tested):
            right += shows_concept(own[i], c)[0]
            rest = torch.cat([others[: 3 * i], others[3 * i + 3 :]])
            wrong += shows_concept(rest, c)[0]
            wrong_base += shows_concept(plain[i * count : (i + 1) * count], c)[0]
        started = time.perf_counter()
        correct = base_right(plain, scenes)
        figures[f"{name}_ms_a_picture"] = 1000 * (time.perf_counter() - started) / len(plain)
        figures[f"{name}_concept_found"] = float(np.mean(right))
        figures[f"{name}_other_concept_called_present"] = float(np.mean(wrong))
        figures[f"{name}_base_shape_called_present"] = float(np.mean(wrong_base))
        figures[f"{name}_base_right"] = float(np.mean(correct))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluate", action="store_true", required=True)
    parser.add_argument("--concepts", type=int, default=24)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = evaluate(args.concepts)
    for name, value in figures.items():
        print(f"{name:40} {value:.4f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
