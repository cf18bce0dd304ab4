"""Pictures drawn from signed distance fields, batched in torch, with captions in a small fixed English.

A shape is its signed distance field on a grid (negative inside, unit = its radius). Drawing a picture samples that
grid under a rotation, a scale and a place, so base shapes and invented glyphs go through one renderer.
Lengths of a `Thing` are fractions of half the picture's side: x = -1 is the left edge, radius 1 fills the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = 128  # cells along a side of a field
EXTENT = 1.3  # a field covers [-EXTENT, EXTENT] in both directions

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (0.98, 0.90, 0.15),
    "green": (0.10, 0.62, 0.20),
    "blue": (0.13, 0.30, 0.90),
    "purple": (0.58, 0.20, 0.72),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = {"small": 22 / 64, "big": 36 / 64}
PLACES = {"centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
REACH = {"small": 34 / 64, "big": 23 / 64}  # how far from the middle a place lies


def shade(colour: str) -> tuple[float, ...]:
    """The second colour of a texture: the colour darkened, or lightened if it is black."""
    rgb = COLOURS[colour]
    return (0.42, 0.42, 0.44) if colour == "black" else tuple(0.62 * c for c in rgb)


# Signed distance fields: (x, y), each (G, G), to (G, G). The y axis points down.


def polygon(x: Tensor, y: Tensor, corners: Sequence[tuple[float, float]]) -> Tensor:
    """Distance to a simple polygon; the sign is by the even-odd rule."""
    distance = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True):
        distance = torch.minimum(distance, segment(x, y, (ax, ay), (bx, by)))
        if ay != by:
            inside ^= ((y < ay) != (y < by)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return torch.where(inside, -distance, distance)


def segment(x: Tensor, y: Tensor, a: tuple[float, float], b: tuple[float, float]) -> Tensor:
    """Distance to the line from a to b."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    t = (((x - a[0]) * dx + (y - a[1]) * dy) / max(dx * dx + dy * dy, 1e-9)).clamp(0, 1)
    return torch.hypot(x - a[0] - t * dx, y - a[1] - t * dy)


def rays(count: int, radii: Sequence[float], turn: float = -0.25) -> list[tuple[float, float]]:
    """Corners at even angles, their radii taken in turn; `turn` is where the first lies, in full circles."""
    angles = [2 * math.pi * (i / count + turn) for i in range(count)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


def _heart(x: Tensor, y: Tensor) -> Tensor:
    t = [2 * math.pi * i / 64 for i in range(64)]
    corners = [
        (math.sin(a) ** 3, 0.06 - (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16)
        for a in t
    ]
    return polygon(x, y, corners)


def _moon(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.75 - torch.hypot(x - 0.48, y))


_ARROW = [(-1, -0.24), (0.1, -0.24), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, 0.24), (-1, 0.24)]
_BOLT = [(0.25, -1.05), (-0.75, 0.25), (-0.12, 0.25), (-0.45, 1.05), (0.75, -0.28), (0.12, -0.28), (0.68, -1.05)]
_BOW = [(-0.95, -0.72), (0, -0.2), (0.95, -0.72), (0.95, 0.72), (0, 0.2), (-0.95, 0.72)]
_CROSS = [
    (-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
    (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3),
]  # fmt: skip

SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: torch.hypot(x, y) - 0.88,
    "square": lambda x, y: polygon(x, y, rays(4, (1.12,), turn=0.125)),
    "triangle": lambda x, y: polygon(x, y, [(0, -0.95), (1.0, 0.8), (-1.0, 0.8)]),
    "star": lambda x, y: polygon(x, y, rays(10, (1.08, 0.46))),
    "heart": _heart,
    "ring": lambda x, y: (torch.hypot(x, y) - 0.7).abs() - 0.25,
    "cross": lambda x, y: polygon(x, y, _CROSS),
    "diamond": lambda x, y: polygon(x, y, rays(4, (1.1, 0.7))),
    "moon": _moon,
    "arrow": lambda x, y: polygon(x, y, _ARROW),
    "bolt": lambda x, y: polygon(x, y, _BOLT),
    "bow": lambda x, y: polygon(x, y, _BOW),
}


def field_axes() -> tuple[Tensor, Tensor]:
    """The x and the y of every cell of a field, (G, G) each."""
    axis = ((torch.arange(GRID) + 0.5) / GRID * 2 - 1) * EXTENT
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


@dataclass(frozen=True)
class Atlas:
    """Named signed distance fields, (N, G, G)."""

    names: tuple[str, ...]
    fields: Tensor

    def plus(self, names: Sequence[str], fields: Tensor) -> Atlas:
        """An atlas that also holds other fields, (M, G, G)."""
        return Atlas((*self.names, *names), torch.cat([self.fields, fields.to(self.fields)]))

    def to(self, device: torch.device | str) -> Atlas:
        """The same atlas on a device."""
        return Atlas(self.names, self.fields.to(device))


def base_atlas() -> Atlas:
    """The base shapes."""
    x, y = field_axes()
    return Atlas(tuple(SHAPES), torch.stack([draw(x, y) for draw in SHAPES.values()]))


@dataclass(frozen=True)
class Thing:
    """One object of a picture."""

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    radius: float
    turn: float
    """Radians."""
    phase: float
    """Where the texture starts, 0 to 1."""


@dataclass(frozen=True)
class Scene:
    """A picture in words: one thing with a size and a place, or two things with a relation."""

    things: tuple[Thing, ...]
    ground: str
    size: str = ""
    place: str = ""
    relation: str = ""

    def caption(self, noun: str | None = None) -> str:
        """Everything, in the fixed order; `noun` stands in for the first shape's name."""
        return self._say(noun=noun)

    def prompt(self, rng: Random, noun: str | None = None) -> str:
        """A caption with some parts left out and one of a few word orders."""

        def keep(share: float) -> bool:
            return rng.random() < share

        return self._say(
            noun=noun, order=rng.choice((0, 0, 0, 1, 2)), size=keep(0.65), texture=keep(0.85), colour=keep(0.93),
            ground=keep(0.75), place=keep(0.65),
        )  # fmt: skip

    def _say(
        self, noun: str | None = None, order: int = 0, size: bool = True, texture: bool = True, colour: bool = True,
        ground: bool = True, place: bool = True,
    ) -> str:  # fmt: skip
        names = []
        for i, thing in enumerate(self.things):
            words = [
                self.size if size else "",
                thing.texture if texture and thing.texture != "plain" else "",
                thing.colour if colour else "",
                noun if noun and i == 0 else thing.shape,
            ]
            words = [w for w in words if w]
            names.append(" ".join([article(words[0]), *words]))
        what = f" {self.relation} ".join(names)
        where = self.place if place else ""
        on = f"{article(self.ground)} {self.ground} ground" if ground else ""
        if order == 1:
            what = f"a picture of {what}"
        if order == 2:
            return ", ".join(part for part in (on, what, where) if part)
        return ", ".join(part for part in (f"{what} on {on}" if on else what, where) if part)


def article(word: str) -> str:
    """`a` or `an`."""
    return "an" if word[0] in "aeiou" else "a"


def random_scene(
    rng: Random, shapes: Sequence[str] = tuple(SHAPES), pairs: float = 0.2, plain: float = 0.6, size: str = ""
) -> Scene:
    """A scene of these shapes; `pairs` of them hold two things, `plain` of the things have no texture."""

    def thing(shape: str, colour: str, x: float, y: float, radius: float) -> Thing:
        def wobble() -> float:
            return rng.uniform(-1, 1) * 3 / 64

        texture = "plain" if rng.random() < plain else rng.choice(TEXTURES[1:])
        radius *= rng.uniform(0.94, 1.06)
        return Thing(
            shape, colour, texture, x + wobble(), y + wobble(), radius, math.radians(rng.uniform(-10, 10)), rng.random()
        )

    if rng.random() < pairs:
        first, second, ground = rng.sample(tuple(COLOURS), 3)
        one, two = rng.choice(shapes), rng.choice(tuple(SHAPES))
        relation = rng.choice(tuple(RELATIONS))
        dx, dy = (29 / 64 * d for d in RELATIONS[relation])
        radius = SIZES["small"]
        return Scene(
            (thing(one, first, dx, dy, radius), thing(two, second, -dx, -dy, radius)), ground, relation=relation
        )
    colour, ground = rng.sample(tuple(COLOURS), 2)
    size = size or rng.choice(tuple(SIZES))
    place = rng.choice(tuple(PLACES))
    dx, dy = (REACH[size] * d for d in PLACES[place])
    return Scene((thing(rng.choice(shapes), colour, dx, dy, SIZES[size]),), ground, size=size, place=place)


def render(scenes: Sequence[Scene], atlas: Atlas, size: int = 128) -> Tensor:
    """Draws the scenes on the atlas's device: (B, size, size, 3) in 0 to 1."""
    device = atlas.fields.device
    grounds = torch.tensor([COLOURS[s.ground] for s in scenes], device=device)
    picture = grounds[:, :, None, None].expand(-1, -1, size, size)
    for layer in range(max(len(s.things) for s in scenes)):
        rows = [i for i, s in enumerate(scenes) if len(s.things) > layer]
        alpha, paint = cover([scenes[i].things[layer] for i in rows], atlas, size)
        where = torch.tensor(rows, device=device)
        picture = picture.index_copy(0, where, torch.lerp(picture[where], paint, alpha))
    return picture.movedim(1, -1)


def cover(things: Sequence[Thing], atlas: Atlas, size: int) -> tuple[Tensor, Tensor]:
    """Coverage (B, 1, S, S) and paint (B, 3, S, S) of one thing a picture."""
    device = atlas.fields.device
    index = {name: i for i, name in enumerate(atlas.names)}
    which = torch.tensor([index[t.shape] for t in things], device=device)
    x, y, radius, turn, phase = torch.tensor(
        [(t.x, t.y, t.radius, t.turn, t.phase) for t in things], device=device
    ).unbind(1)
    colour = torch.tensor([COLOURS[t.colour] for t in things], device=device)
    second = torch.tensor([shade(t.colour) for t in things], device=device)
    texture = torch.tensor([TEXTURES.index(t.texture) for t in things], device=device)

    cos, sin, unit = turn.cos(), turn.sin(), radius * EXTENT
    theta = torch.stack(
        [cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], dim=1
    ).view(-1, 2, 3) / unit[:, None, None]  # fmt: skip
    grid = F.affine_grid(theta, [len(things), 1, size, size], align_corners=False)
    field = F.grid_sample(atlas.fields[which][:, None], grid, padding_mode="border", align_corners=False)
    alpha = (0.5 - field * (radius * size / 2)[:, None, None, None]).clamp(0, 1)

    u, v = (grid * (unit * 64)[:, None, None, None]).unbind(-1)  # pixels of a 128 px picture, in the thing's frame
    u, v = u + 14 * phase[:, None, None], v + 14 * phase[:, None, None]
    patterns = torch.stack([torch.full_like(u, -9.0), _stripes(v), _dots(u, v), _checks(u, v)], dim=1)
    chosen = patterns.gather(1, texture[:, None, None, None].expand(-1, 1, size, size))
    mix = (0.5 + chosen * size / 128).clamp(0, 1)
    return alpha, torch.lerp(colour[:, :, None, None], second[:, :, None, None], mix)


def _stripes(v: Tensor, period: float = 14) -> Tensor:
    return torch.sin(v * (2 * math.pi / period)) * period / (2 * math.pi)


def _dots(u: Tensor, v: Tensor, period: float = 14, radius: float = 4) -> Tensor:
    return radius - torch.hypot(torch.remainder(u, period) - period / 2, torch.remainder(v, period) - period / 2)


def _checks(u: Tensor, v: Tensor, cell: float = 10) -> Tensor:
    return torch.sin(u * (math.pi / cell)) * torch.sin(v * (math.pi / cell)) * cell / math.pi
