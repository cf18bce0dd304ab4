"""Aspect buckets: sizes within their limits, and the cut into the nearest."""

import math

import pytest
from lora_kiln.training.data.buckets import CROP_VARIANTS, bucket_sizes, crops, fit_picture

RECIPES = [(512, 64, 256, 2048), (1024, 64, 256, 2048), (768, 32, 512, 1024), (128, 8, 64, 256), (512, 64, 300, 1000)]
"""resolution, step, shortest, longest"""
PICTURES = [(1, 1), (100, 100), (1920, 1080), (1080, 1920), (5000, 100), (16, 30_000), (641, 479), (512, 512)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_sides_are_multiples_of_the_step(recipe) -> None:
    assert all(side % recipe[1] == 0 for size in bucket_sizes(*recipe) for side in size)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_bucket_has_more_than_the_area(recipe) -> None:
    assert all(width * height <= recipe[0] ** 2 for width, height in bucket_sizes(*recipe))


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_side_is_below_the_shortest(recipe) -> None:
    assert min(min(size) for size in bucket_sizes(*recipe)) >= recipe[2]


@pytest.mark.parametrize("recipe", [*RECIPES, (1024, 64, 256, 512)])
def test_no_side_is_above_the_longest(recipe) -> None:
    assert max(max(size) for size in bucket_sizes(*recipe)) <= recipe[3]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_bucket_has_its_mirror(recipe) -> None:
    sizes = bucket_sizes(*recipe)
    assert {(height, width) for width, height in sizes} == set(sizes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_bucket_could_grow_on_both_sides(recipe) -> None:
    """One side is as long as the other lets it be."""
    resolution, step, _, longest = recipe
    for width, height in bucket_sizes(*recipe):
        sizes = [(width + step, height), (width, height + step)]
        assert any(w * h > resolution**2 or max(w, h) > longest for w, h in sizes)


def test_sdxl_has_its_known_buckets() -> None:
    known = {(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768), (768, 1344), (1536, 640)}
    assert known <= set(bucket_sizes(1024, 64, 256, 2048))


def test_the_square_is_there_even_when_the_step_is_larger() -> None:
    assert bucket_sizes(64, 256, 64, 256) == [(256, 256)]


@pytest.mark.parametrize("size", PICTURES)
def test_the_scaled_picture_covers_its_bucket_on_both_sides(size) -> None:
    fit = fit_picture(*size, bucket_sizes(*RECIPES[0]))
    assert fit.scaled_width >= fit.width and fit.scaled_height >= fit.height
    assert fit.scaled_width == fit.width or fit.scaled_height == fit.height


@pytest.mark.parametrize("size", PICTURES)
def test_the_cut_lies_within_the_scaled_picture(size) -> None:
    fit = fit_picture(*size, bucket_sizes(*RECIPES[0]))
    assert 0 <= fit.left <= fit.scaled_width - fit.width
    assert 0 <= fit.top <= fit.scaled_height - fit.height


@pytest.mark.parametrize("size", PICTURES)
def test_the_cut_is_centred(size) -> None:
    fit = fit_picture(*size, bucket_sizes(*RECIPES[0]))
    assert abs(fit.left - (fit.scaled_width - fit.width - fit.left)) <= 1
    assert abs(fit.top - (fit.scaled_height - fit.height - fit.top)) <= 1


@pytest.mark.parametrize("size", [(1920, 1080), (641, 479), (512, 512), (700, 900)])
def test_scaling_keeps_the_shape(size) -> None:
    fit = fit_picture(*size, bucket_sizes(*RECIPES[0]))
    assert fit.scaled_width / fit.scaled_height == pytest.approx(size[0] / size[1], rel=0.005)


@pytest.mark.parametrize("size", PICTURES)
def test_no_bucket_is_nearer_in_shape(size) -> None:
    sizes = bucket_sizes(*RECIPES[0])
    fit = fit_picture(*size, sizes)

    def distance(width: int, height: int) -> float:
        return abs(math.log(width / height * size[1] / size[0]))

    assert distance(fit.width, fit.height) == pytest.approx(min(distance(*each) for each in sizes))


def test_of_buckets_of_one_shape_the_largest_is_taken() -> None:
    assert fit_picture(10, 10, [(64, 64), (128, 128), (96, 96)]).width == 128


@pytest.mark.parametrize("size", PICTURES)
def test_every_crop_lies_within_the_scaled_picture(size) -> None:
    for fit in crops(fit_picture(*size, bucket_sizes(*RECIPES[0]))):
        assert 0 <= fit.left <= fit.scaled_width - fit.width
        assert 0 <= fit.top <= fit.scaled_height - fit.height


@pytest.mark.parametrize("size", PICTURES)
def test_crops_reach_both_ends_and_differ_in_nothing_but_their_place(size) -> None:
    centred = fit_picture(*size, bucket_sizes(*RECIPES[0]))
    views = crops(centred)
    assert len(views) == CROP_VARIANTS
    assert (views[0].left, views[0].top) == (0, 0)
    assert (views[-1].left, views[-1].top) == (
        centred.scaled_width - centred.width, centred.scaled_height - centred.height,
    )  # fmt: skip
    assert {(f.width, f.height, f.scaled_width, f.scaled_height) for f in views} == {
        (centred.width, centred.height, centred.scaled_width, centred.scaled_height)
    }
