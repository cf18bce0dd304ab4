"""The data of a run: order, balance, captions and sizes, as functions of the seed."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.buckets import CROP_VARIANTS, crops
from lora_kiln.training.data.dataset import (
    SHUFFLE_VARIANTS,
    Dataset,
    DatasetSettings,
    Picture,
    bucket_table,
    size_conditioning,
    upscaled,
)
from lora_kiln.training.data.folder_settings import FolderSettings
from lora_kiln.training.data.plan import Plan

SEED, BATCH, EPOCHS = 7, 3, 200
SETTINGS = dict(resolution=64, bucket_step=16, shortest_side=32, longest_side=128)
WIDE, SQUARE = (160, 80), (64, 64)


def dataset(*pictures: Picture, **settings) -> Dataset:
    return Dataset(pictures, DatasetSettings(**{**SETTINGS, **settings}))


def picture(name: str, size=SQUARE, caption: str = "", repeats: int = 1, prior: bool = False) -> Picture:
    return Picture(name, *size, caption, repeats, prior)


def mixed(**settings) -> Dataset:
    """Two buckets, three repeats of one picture."""
    return dataset(
        *(picture(f"square {n}", caption=f"caption {n}") for n in range(5)),
        *(picture(f"wide {n}", WIDE, caption=f"wide caption {n}") for n in range(4)),
        picture("often", caption="often", repeats=3),
        **settings,
    )


def samples(data: Dataset, epoch: int = 0, seed: int = SEED) -> list:
    return [sample for batch in data.epoch_batches(epoch, BATCH, seed) for sample in batch]


# ---------------------------------------------------------------- order


def test_the_order_of_an_epoch_follows_from_the_seed() -> None:
    settings = dict(flip=True, shuffle_tags=True, caption_dropout=0.3)
    assert mixed(**settings).epoch_batches(3, BATCH, SEED) == mixed(**settings).epoch_batches(3, BATCH, SEED)


def test_another_seed_gives_another_order() -> None:
    assert mixed().epoch_batches(0, BATCH, SEED) != mixed().epoch_batches(0, BATCH, SEED + 1)


def test_another_epoch_has_another_order() -> None:
    assert mixed().epoch_batches(0, BATCH, SEED) != mixed().epoch_batches(1, BATCH, SEED)


def test_an_epoch_does_not_know_which_epochs_were_asked_before() -> None:
    data = mixed()
    data.epoch_batches(0, BATCH, SEED)
    torch.manual_seed(5)
    assert data.epoch_batches(4, BATCH, SEED) == mixed().epoch_batches(4, BATCH, SEED)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_an_epoch_shows_each_picture_as_often_as_it_repeats(batch_size: int) -> None:
    shown = Counter(s.picture for batch in mixed().epoch_batches(0, batch_size, SEED) for s in batch)
    assert shown == {**dict.fromkeys(range(9), 1), 9: 3}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_a_batch_has_one_bucket_and_at_most_its_size(batch_size: int) -> None:
    data = mixed()
    for batch in data.epoch_batches(0, batch_size, SEED):
        assert 1 <= len(batch) <= batch_size
        assert len({(s.fit.width, s.fit.height) for s in batch}) == 1


# ---------------------------------------------------------------- regularisation


def balanced(prior: int, repeats: int = 1) -> Dataset:
    return dataset(
        *(picture(f"own {n}", repeats=repeats) for n in range(4)),
        *(picture(f"prior {n}", prior=True) for n in range(prior)),
        prior_loss_weight=0.25,
    )


@pytest.mark.parametrize(("prior", "repeats"), [(1, 1), (4, 1), (3, 5), (50, 1)])
def test_regularisation_pictures_are_shown_as_often_as_the_others(prior: int, repeats: int) -> None:
    shown = Counter(s.picture >= 4 for s in samples(balanced(prior, repeats)))
    assert shown == {False: 4 * repeats, True: 4 * repeats}


def test_regularisation_pictures_go_on_where_the_last_epoch_stopped() -> None:
    data = balanced(8)
    first, second = ({s.picture for s in samples(data, epoch) if s.picture >= 4} for epoch in (0, 1))
    assert len(first) == len(second) == 4 and not first & second


def test_few_regularisation_pictures_take_turns() -> None:
    shown = Counter(s.picture for epoch in range(3) for s in samples(balanced(3), epoch) if s.picture >= 4)
    assert shown == {4: 4, 5: 4, 6: 4}


def test_a_regularisation_picture_has_the_prior_weight() -> None:
    data = balanced(4)
    assert {data.loss_weight(s) for s in samples(data) if s.picture >= 4} == {0.25}
    assert {data.loss_weight(s) for s in samples(data) if s.picture < 4} == {1.0}


def test_a_regularisation_picture_never_gets_the_trigger_word() -> None:
    data = dataset(picture("own"), picture("prior", caption="a dog", prior=True), trigger_word="zwx")
    assert {s.picture: s.caption for s in samples(data)} == {0: "zwx", 1: "a dog"}


def test_a_plan_shows_every_picture_once_an_epoch_though_regularisation_fills_other_buckets() -> None:
    """How many batches an epoch has may change with the buckets of its regularisation pictures."""
    data = dataset(
        *(picture(f"own {n}") for n in range(6)),
        *(picture(f"prior {n}", SQUARE if n % 2 else WIDE, prior=True) for n in range(7)),
    )
    config = LoRAConfig.of(epochs=12, batch_size=4, seed=SEED)
    plan = Plan(data, config.optimization, config.run.seed)
    shown = Counter(s.picture for step in range(plan.steps) for s in plan.samples_at(step, 0) if s.picture < 6)
    assert shown == dict.fromkeys(range(6), config.optimization.epochs)


# ---------------------------------------------------------------- what a sample becomes


def test_without_flip_nothing_is_mirrored() -> None:
    assert not any(s.flipped for epoch in range(5) for s in samples(mixed(), epoch))


def test_with_flip_half_is_mirrored() -> None:
    flipped = [s.flipped for epoch in range(EPOCHS) for s in samples(mixed(flip=True), epoch)]
    assert sum(flipped) / len(flipped) == pytest.approx(0.5, abs=0.05)


def test_a_picture_is_seen_both_ways() -> None:
    seen = {s.flipped for epoch in range(20) for s in samples(mixed(flip=True), epoch) if s.picture == 0}
    assert seen == {True, False}


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_captions_are_dropped_at_the_asked_share(share: float) -> None:
    dropped = [not s.caption for epoch in range(EPOCHS) for s in samples(mixed(caption_dropout=share), epoch)]
    assert sum(dropped) / len(dropped) == pytest.approx(share, abs=0.04)


def test_each_sample_has_its_own_pictures_caption() -> None:
    data = mixed()
    assert all(s.caption == data.pictures[s.picture].caption for s in samples(data))


def test_tags_come_in_a_bounded_number_of_orders() -> None:
    data = dataset(picture("a", caption="one, two, three, four, five, six"), shuffle_tags=True, keep_tokens=1)
    captions = {s.caption for epoch in range(EPOCHS) for s in samples(data, epoch)}
    assert 1 < len(captions) <= SHUFFLE_VARIANTS
    assert all(caption.startswith("one, ") for caption in captions)


def test_the_trigger_word_stays_in_front_when_tags_are_shuffled() -> None:
    data = dataset(picture("a", caption="red, green, blue"), shuffle_tags=True, keep_tokens=1, trigger_word="zwx")
    assert all(s.caption.startswith("zwx, ") for epoch in range(20) for s in samples(data, epoch))


def test_new_captions_leave_the_old_dataset_as_it_was() -> None:
    data = mixed()
    captioned = data.with_captions({0: "new", 9: "other"})
    assert [captioned.caption(0), captioned.caption(1), captioned.caption(9)] == ["new", "caption 1", "other"]
    assert data.caption(0) == "caption 0"


# ---------------------------------------------------------------- sizes


def test_the_bucket_table_counts_pictures() -> None:
    assert bucket_table(mixed()) == {(64, 64): 6, (80, 48): 4}


def test_size_conditioning_names_the_cut_as_the_host_does() -> None:
    wide = picture("wide", (200, 64))
    fit = dataset(wide, longest_side=64, shortest_side=64).fits()[0]
    assert size_conditioning(wide, fit) == dict(
        width=200, height=64, crop_w=68, crop_h=0, target_width=64, target_height=64
    )


def test_a_mirrored_picture_tells_the_cut_of_its_other_side() -> None:
    wide = picture("wide", (201, 64))
    fit = dataset(wide, longest_side=64, shortest_side=64).fits()[0]
    cut = [size_conditioning(wide, fit, flipped)["crop_w"] for flipped in (False, True)]
    assert sum(cut) == 201 - 64 and cut == [68, 69]


def test_enlarged_pictures_are_named() -> None:
    assert upscaled(dataset(picture("small", (20, 20)), picture("large", (500, 500)))) == [
        "small is 20 x 20, trained at 64 x 64"
    ]


# ---------------------------------------------------------------- several resolutions


def test_an_epoch_shows_each_picture_at_each_resolution_as_often_as_it_repeats() -> None:
    data = mixed(extra_resolutions="96, 128", longest_side=256)
    shown = Counter((s.picture, s.fit) for s in samples(data))
    for index, each in enumerate(data.pictures):
        fits = [data.fits(resolution)[index] for resolution in (64, 96, 128)]
        assert len(set(fits)) == 3
        assert [shown.pop((index, fit)) for fit in fits] == [each.repeats] * 3
    assert not shown


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_no_batch_mixes_resolutions(batch_size: int) -> None:
    for batch in mixed(extra_resolutions="96").epoch_batches(1, batch_size, SEED):
        assert len({(s.fit.width, s.fit.height) for s in batch}) == 1


def test_regularisation_pictures_balance_all_resolutions() -> None:
    data = dataset(
        *(picture(f"own {n}") for n in range(4)), *(picture(f"prior {n}", prior=True) for n in range(3)),
        extra_resolutions="96",
    )  # fmt: skip
    shown = Counter(s.picture >= 4 for s in samples(data))
    assert shown == {False: 8, True: 8}
    assert len({(s.picture, s.fit) for epoch in range(3) for s in samples(data, epoch) if s.picture >= 4}) == 6


@pytest.mark.parametrize(
    ("text", "resolutions"),
    [("", (64,)), (" ", (64,)), ("96", (64, 96)), ("128, 96,", (64, 128, 96)), ("64, 96, 96", (64, 96))],
)
def test_resolutions_are_read_from_text(text: str, resolutions) -> None:
    assert DatasetSettings(**SETTINGS, extra_resolutions=text).resolutions() == resolutions


@pytest.mark.parametrize("text", ["big", "96; 128", "32", "9999", "96.5", "-96"])
def test_resolutions_that_cannot_be_are_named(text: str) -> None:
    with pytest.raises(InputError, match="extra_resolutions has"):
        DatasetSettings(extra_resolutions=text)


def test_the_bucket_table_counts_every_resolution() -> None:
    assert bucket_table(mixed(extra_resolutions="128")) == {(64, 64): 6, (80, 48): 4, (128, 64): 4, (128, 128): 6}


# ---------------------------------------------------------------- random crop

LONG = (300, 40)


def cropped(**settings) -> Dataset:
    return dataset(picture("long", LONG), picture("tall", LONG[::-1]), picture("square"), random_crop=True, **settings)


def test_random_crops_are_those_of_the_bucket_and_come_evenly() -> None:
    data = cropped()
    for index in range(2):
        seen = Counter(s.fit for epoch in range(EPOCHS * 2) for s in samples(data, epoch) if s.picture == index)
        assert set(seen) == set(crops(data.fits()[index])) and len(seen) == CROP_VARIANTS
        assert min(seen.values()) > EPOCHS * 2 / CROP_VARIANTS / 2


def test_a_picture_that_fits_its_bucket_has_nothing_to_crop() -> None:
    assert {s.fit for epoch in range(9) for s in samples(cropped(), epoch) if s.picture == 2} == {cropped().fits()[2]}


def test_random_crops_follow_from_the_seed() -> None:
    assert cropped().epoch_batches(3, BATCH, SEED) == cropped().epoch_batches(3, BATCH, SEED)
    draws = [[s.fit for s in sorted(samples(cropped(), epoch), key=lambda s: s.picture)] for epoch in range(8)]
    assert len(set(map(tuple, draws))) > 1


def test_without_random_crop_every_sample_has_the_centred_cut() -> None:
    data = dataset(picture("long", LONG), picture("square"))
    assert all(s.fit == data.fits()[s.picture] for epoch in range(5) for s in samples(data, epoch))


def test_random_crop_changes_nothing_else_of_an_epoch() -> None:
    settings = dict(flip=True, shuffle_tags=True, caption_dropout=0.3)
    plain, moved = mixed(**settings), mixed(**settings, random_crop=True)
    assert [(s.picture, s.flipped, s.caption) for s in samples(plain)] == [
        (s.picture, s.flipped, s.caption) for s in samples(moved)
    ]


@pytest.mark.parametrize("flipped", [False, True])
def test_size_conditioning_says_where_each_crop_begins(flipped: bool) -> None:
    """A column of the scaled picture is found at its place minus crop_w, in a mirrored picture counted from its end."""
    long = picture("long", LONG)
    for fit in crops(dataset(long, longest_side=64, shortest_side=64).fits()[0]):
        scaled = torch.arange(fit.scaled_width).expand(fit.scaled_height, -1)
        seen = scaled[fit.top : fit.top + fit.height, fit.left : fit.left + fit.width]
        scaled, seen = (scaled.flip(1), seen.flip(1)) if flipped else (scaled, seen)
        size = size_conditioning(long, fit, flipped)
        assert torch.equal(seen, scaled[:, size["crop_w"] :][:, : size["target_width"]][: size["target_height"]])


# ---------------------------------------------------------------- tag dropout


def test_tags_are_left_out_in_a_bounded_number_of_ways() -> None:
    tags = "one, two, three, four, five, six"
    data = dataset(picture("a", caption=tags), tag_dropout=0.5, keep_tokens=1)
    captions = {s.caption for epoch in range(EPOCHS) for s in samples(data, epoch)}
    assert 1 < len(captions) <= SHUFFLE_VARIANTS
    assert all(set(caption.split(", ")) <= set(tags.split(", ")) for caption in captions)
    assert all(caption.startswith("one") for caption in captions)


def test_tags_are_left_out_and_shuffled_together_in_a_bounded_number_of_ways() -> None:
    data = dataset(picture("a", caption="a, b, c, d, e, f"), tag_dropout=0.3, shuffle_tags=True, keep_tokens=1)
    captions = {s.caption for epoch in range(EPOCHS) for s in samples(data, epoch)}
    assert 1 < len(captions) <= SHUFFLE_VARIANTS


# ---------------------------------------------------------------- folders' own settings


def with_folder(**said) -> Dataset:
    """Two pictures, the second in a folder with settings of its own."""
    own = replace(picture("own", LONG, caption="a, b, c, d, e"), folder=FolderSettings(**said))
    return dataset(picture("plain", LONG, caption="a, b, c, d, e"), own, trigger_word="zwx", keep_tokens=1)


def drawn(data: Dataset, index: int) -> list:
    return [s for epoch in range(60) for s in samples(data, epoch) if s.picture == index]


@pytest.mark.parametrize(
    ("said", "is_so"),
    [
        (dict(flip=True), lambda drawn: len({s.flipped for s in drawn}) == 2),
        (dict(random_crop=True), lambda drawn: len({s.fit for s in drawn}) == CROP_VARIANTS),
        (dict(shuffle_tags=True), lambda drawn: len({s.caption for s in drawn}) > 1),
        (dict(tag_dropout=1.0), lambda drawn: {s.caption for s in drawn} == {"zwx"}),
        (dict(tag_dropout=1.0, keep_tokens=3), lambda drawn: {s.caption for s in drawn} == {"zwx, a, b"}),
        (dict(caption_dropout=1.0), lambda drawn: {s.caption for s in drawn} == {""}),
        (dict(trigger_word="qrs"), lambda drawn: {s.caption for s in drawn} == {"qrs, a, b, c, d, e"}),
        (dict(caption_prefix="of "), lambda drawn: {s.caption for s in drawn} == {"zwx, of a, b, c, d, e"}),
        (dict(caption_suffix=", x"), lambda drawn: {s.caption for s in drawn} == {"zwx, a, b, c, d, e, x"}),
    ],
)
def test_a_folders_settings_hold_for_its_pictures_alone(said, is_so) -> None:
    data = with_folder(**said)
    assert is_so(drawn(data, 1)) and not is_so(drawn(data, 0))


def test_a_folders_loss_weight_is_a_factor() -> None:
    prior = replace(picture("prior", prior=True), folder=FolderSettings(loss_weight=0.5))
    own = replace(picture("own"), folder=FolderSettings(loss_weight=3.0))
    data = dataset(picture("plain"), own, prior, prior_loss_weight=0.25)
    weights = {s.picture: data.loss_weight(s) for s in samples(data)}
    assert weights == {0: 1.0, 1: 3.0, 2: 0.125}


def test_masks_count_where_masked_loss_is_on() -> None:
    mask = torch.ones(8, 8)
    masked = replace(picture("own"), mask_pixels=mask, folder=FolderSettings(masked_loss=True))
    data = dataset(replace(picture("off"), mask_pixels=mask), masked, replace(masked, mask_pixels=None))
    assert [data.is_masked(index) for index in range(3)] == [False, True, False]


@pytest.mark.parametrize("value", [96.5, float("nan"), "96"])
@pytest.mark.parametrize("setting", ["resolution", "bucket_step", "shortest_side", "longest_side", "keep_tokens"])
def test_a_number_that_is_not_whole_is_refused_by_the_name_of_its_setting(setting: str, value) -> None:
    with pytest.raises(InputError, match=f"{setting} is {value!r}; it must be a whole number, such as "):
        DatasetSettings(**{setting: value})


def test_a_whole_number_may_come_with_a_point() -> None:
    settings = DatasetSettings(resolution=512.0, keep_tokens=1.0)  # pyright: ignore[reportArgumentType]
    assert (repr(settings.resolution), repr(settings.keep_tokens)) == ("512", "1")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("resolution", 63),
        ("resolution", 5000),
        ("bucket_step", 0),
        ("bucket_step", 12),
        ("caption_dropout", -0.1),
        ("prior_loss_weight", -0.5),
        ("keep_tokens", -1),
        ("longest_side", 16),
        ("tag_dropout", 1.1),
        ("unmasked_weight", -0.1),
        ("loss_weight", float("nan")),
        ("extra_resolutions", "7"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=setting):
        dataset(picture("a"), **{setting: value})
