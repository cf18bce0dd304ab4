"""The judge is right about fresh pictures, as drawn and blurred, noisy and compressed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from kit.concepts import Concept
from kit.draw import base_atlas, random_scene, render
from kit.judge import base_right, shape_and_colour, shows_concept, spoil

SEEDS = (21, 22, 23)
COUNT = 12

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "drawn": lambda pictures: pictures,
    "spoiled": lambda pictures: spoil(pictures, np.random.RandomState(1)),
}


@pytest.fixture(scope="module", params=CHANGES)
def change(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    return CHANGES[request.param]


@pytest.fixture(scope="module")
def concepts() -> list[Concept]:
    return [Concept(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def glyphs(concepts: list[Concept], change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Fresh pictures of each concept."""
    return [change(render(concept.scenes(77, COUNT), concept.atlas())) for concept in concepts]


def test_concepts_are_found(concepts: list[Concept], glyphs: list[Tensor]) -> None:
    found = [shows_concept(own, concept)[0] for own, concept in zip(glyphs, concepts, strict=True)]
    assert np.mean(found) >= 0.95


def test_other_concepts_are_not_called_present(concepts: list[Concept], glyphs: list[Tensor]) -> None:
    wrong = [
        present
        for i, concept in enumerate(concepts)
        for present in shows_concept(torch.cat([own[:6] for own in glyphs[:i] + glyphs[i + 1 :]]), concept)[0]
    ]
    assert np.mean(wrong) <= 0.02


def test_base_pictures(concepts: list[Concept], change: Callable[[Tensor], Tensor]) -> None:
    rng = Random(31)
    scenes = [random_scene(rng, pairs=0) for _ in range(39)]
    pictures = change(render(scenes, base_atlas()))
    assert np.mean(base_right(pictures, scenes)) >= 0.95
    wrong = []
    for i, concept in enumerate(concepts):
        wrong += shows_concept(pictures[i :: len(concepts)], concept)[0]
    assert np.mean(wrong) <= 0.02


def test_an_empty_picture_and_noise_show_nothing(concepts: list[Concept]) -> None:
    empty = torch.full((2, 128, 128, 3), 0.4)
    noise = torch.rand(4, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    pictures = torch.cat([empty, noise])
    assert not any(shows_concept(pictures, concepts[0])[0])
    assert all(shape == "" for shape, _ in shape_and_colour(pictures))


def test_the_answer_does_not_depend_on_size_or_company(concepts: list[Concept]) -> None:
    concept = concepts[0]
    scenes = concept.scenes(5, 4)
    large = render(scenes, concept.atlas(), 256)
    assert all(shows_concept(large, concept)[0])
    alone = [shows_concept(picture[None], concept)[1][0] for picture in large]
    assert alone == pytest.approx(shows_concept(large, concept)[1], abs=1e-4)
