"""The kit's pictures and concepts: functions of their seeds, named by their captions, of their own kinds."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

from kit.concepts import ALIKE, Concept, _likeness, scribbles, write_base_pictures
from kit.draw import COLOURS, GRID, SHAPES, SIZES, Scene, base_atlas, cover, random_scene, render

SEEDS = (1, 3, 4)


def scenes(seed: int, count: int = 24, **options: float) -> list[Scene]:
    rng = Random(seed)
    return [random_scene(rng, **options) for _ in range(count)]


@pytest.fixture(scope="module")
def concepts() -> list[Concept]:
    return [Concept(seed) for seed in SEEDS]


def test_pictures_follow_from_the_seed() -> None:
    one, two, other = (render(scenes(seed), base_atlas()) for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("size", [64, 128, 192])
def test_pictures_have_the_asked_size_and_range(size: int) -> None:
    pictures = render(scenes(1), base_atlas(), size)
    assert pictures.shape == (24, size, size, 3)
    assert 0 <= pictures.min() and pictures.max() <= 1


def test_a_picture_is_the_same_alone_and_in_company() -> None:
    drawn = scenes(2, 6, pairs=0.5)
    together = render(drawn, base_atlas())
    alone = torch.cat([render([scene], base_atlas()) for scene in drawn])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_captions_name_all_that_is_drawn() -> None:
    for scene in scenes(3, 300, pairs=0.3):
        words = scene.caption().replace(",", " ").split()
        for thing in scene.things:
            assert thing.shape in words and thing.colour in words
            assert thing.texture == "plain" or thing.texture in words
        assert scene.ground in words and "plain" not in words
        if scene.relation:
            assert scene.relation in scene.caption() and scene.place == scene.size == ""
        else:
            assert scene.place in words and scene.size in words


def test_a_noun_stands_in_for_the_first_shape() -> None:
    scene = scenes(4, 1, pairs=0)[0]
    assert scene.caption("sign") == scene.caption().replace(scene.things[0].shape, "sign")


def test_what_is_drawn_has_the_caption_s_colours_and_place() -> None:
    drawn = scenes(5, 60, pairs=0, plain=1)
    pictures = render(drawn, base_atlas())
    alpha = cover([scene.things[0] for scene in drawn], base_atlas(), 128)[0][:, 0]
    for scene, picture, mask in zip(drawn, pictures, alpha, strict=True):
        colour, ground = (torch.tensor(COLOURS[name]) for name in (scene.things[0].colour, scene.ground))
        assert (picture[mask == 1] - colour).abs().max() < 1e-5
        assert (picture[mask == 0] - ground).abs().max() < 1e-5
        across, down = ((line * torch.linspace(-1, 1, 128)).sum() / mask.sum() for line in (mask.sum(0), mask.sum(1)))
        offset = {"left": -across, "right": across, "top": -down, "bottom": down}
        if scene.place == "centre":
            assert max(across.abs(), down.abs()) < 0.25
        else:
            assert max(offset, key=lambda name: float(offset[name])) == scene.place


def test_a_big_thing_is_bigger_than_a_small_one() -> None:
    areas = {}
    for size in SIZES:
        things = [random_scene(Random(7), (shape,), pairs=0, size=size).things[0] for shape in SHAPES]
        areas[size] = cover(things, base_atlas(), 128)[0].mean((1, 2, 3))
    assert (areas["big"] > 1.8 * areas["small"]).all()


def test_a_concept_follows_from_its_seed(concepts: list[Concept]) -> None:
    concept, again = concepts[0], Concept(concepts[0].seed)
    assert again.trigger == concept.trigger
    assert torch.equal(again.field, concept.field)
    assert again.scenes(0, 5) == concept.scenes(0, 5) != concept.scenes(1, 5)


def test_concepts_differ_in_word_and_glyph(concepts: list[Concept]) -> None:
    assert len({concept.trigger for concept in concepts}) == len(concepts)
    inside = torch.stack([concept.field < 0 for concept in concepts]).flatten(1).float()
    shared = inside @ inside.T
    areas = inside.sum(1)
    overlap = shared / (areas[:, None] + areas - shared)
    assert overlap.fill_diagonal_(0).max() < 0.9


def test_a_glyph_is_unlike_the_base_shapes(concepts: list[Concept]) -> None:
    assert all(_likeness(concept.field) < ALIKE for concept in concepts)
    assert all(_likeness(field) > 0.9 for field in base_atlas().fields)  # the measure knows the base shapes
    assert not {concept.trigger for concept in concepts} & {*SHAPES, *COLOURS}


def test_a_concept_s_dataset(tmp_path: Path) -> None:
    concept = Concept(4)
    drawn = concept.write_dataset(tmp_path, count=6, size=64, missing_captions=2)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"{i:02d}.png" for i in range(6)]
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == [f"{i:02d}.txt" for i in range(4)]
    for i, scene in enumerate(drawn[:4]):
        text = (tmp_path / f"{i:02d}.txt").read_text(encoding="utf-8").strip()
        assert text == scene.caption() and concept.trigger in text.split()
    with Image.open(tmp_path / "00.png") as picture:
        assert picture.size == (64, 64)


def test_regularisation_pictures_show_no_glyph(tmp_path: Path) -> None:
    drawn = write_base_pictures(tmp_path, seed=3, count=5, size=64)
    assert len(list(tmp_path.glob("*.png"))) == len(list(tmp_path.glob("*.txt"))) == 5
    assert {scene.things[0].shape for scene in drawn} <= set(SHAPES)


def test_scribbles_follow_from_the_seed() -> None:
    one, two = scribbles(3, 4), scribbles(3, 4)
    assert one.fields.shape == (4, GRID, GRID) and torch.equal(one.fields, two.fields)
    assert not torch.equal(one.fields, scribbles(4, 4).fields)
