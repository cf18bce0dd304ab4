"""The Load Dataset node called as the host calls it, and pictures for it to read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lora_kiln.nodes.load_dataset import LoadDataset
from PIL import Image

RESOLUTION = 64
SIZE = (64, 64)
RED, BLUE = (200, 20, 10), (10, 30, 200)
TOLERANCE = 2 / 255
SETTINGS = dict(resolution=RESOLUTION, bucket_step=16, shortest_side=32, longest_side=128)


def load(folder: str = "set", **settings):
    """The node, called as the host calls it: every value in a list."""
    linked = {name: settings.pop(name, None) for name in ("images", "captions", "masks")}
    values = {name: [value] for name, value in (SETTINGS | settings).items()}
    return LoadDataset.execute(folder=[folder], **linked, **values)


def dataset_of(folder: str = "set", **settings):
    return load(folder, **settings).args[0]


def names(dataset) -> list[str]:
    return [picture.name for picture in dataset.pictures]


def pixels_of(dataset, index: int = 0) -> torch.Tensor:
    return dataset.pictures[index].load(dataset.fits()[index])


def save(folder: Path, name: str = "a.png", color=RED, size=SIZE, **options) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def noise_picture(size=(96, 64)) -> Image.Image:
    """Incompressible, so that a cut file lacks pixels and not only its end mark."""
    values = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def assert_color(pixels: torch.Tensor, color: tuple[int, int, int], tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(pixels.mean((0, 1)), torch.tensor(color) / 255.0, atol=tolerance, rtol=0)
