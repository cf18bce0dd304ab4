"""Advice before a run: it fires where a setting commonly fails, and is silent on what is usual."""

from typing import Any

import pytest
from lora_kiln.training.config import PRESETS, LoRAConfig, preset_values
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.run.advice import advice

SD15, SDXL, FLUX = "sd_v1", "sdxl_base_v1-0", "flux1"


def data(count: int = 20, side: int = 1024, caption: str = "a cat", prior: int = 0, repeats: int = 1, **settings: Any):
    settings = {"resolution": 512, "trigger_word": "ohwx", **settings}
    own = [Picture(f"{n}.png", side, side, caption and f"{caption} {n}", repeats=repeats) for n in range(count)]
    rest = [Picture(f"r{n}.png", side, side, "a dog", is_regularisation=True) for n in range(prior)]
    return Dataset((*own, *rest), DatasetSettings(**settings))


def notes(base: str = SD15, dataset: Dataset | None = None, **config: Any) -> list[str]:
    return advice(LoRAConfig.of(**config), base, dataset or data())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("prior", [0, 20])
def test_the_presets_need_no_advice(preset: str, prior: int) -> None:
    base, resolution = (SDXL, 1024) if "SDXL" in preset else (SD15, 512)
    assert advice(LoRAConfig.of(**preset_values(preset)), base, data(prior=prior, resolution=resolution)) == []


@pytest.mark.parametrize(
    "config",
    [
        dict(optimizer="prodigy", learning_rate=1.0),
        dict(optimizer="lion", learning_rate=2e-5),
        dict(optimizer="schedule_free", learning_rate=1e-3),
        dict(text_encoder_learning_rate=2e-5),
        dict(rslora=True, rank=64, alpha=4.0),
        dict(adapter="oft", rank=4, alpha=64.0),
        dict(sample_every=250, sample_prompts=("a cat",)),
        dict(epochs=100),
    ],
)
def test_usual_settings_need_none(config: dict[str, Any]) -> None:
    assert notes(**config) == []


RATES = [
    ("adamw", 1e-2, "high"), ("adamw", 1e-7, "low"), ("adamw8bit", 1e-2, "high"), ("adafactor", 1e-7, "low"),
    ("lion", 1e-4, "high"), ("lion", 1e-8, "low"), ("prodigy", 10.0, "high"), ("prodigy", 0.1, "low"),
    ("schedule_free", 0.1, "high"),
]  # fmt: skip
SETTINGS = [
    (dict(text_encoder_learning_rate=3e-4), "text_encoder_learning_rate is 0.0003"),
    (dict(rank=8, alpha=64.0), "alpha is 64 at rank 8"),
    (dict(rank=128, alpha=1.0), "alpha is 1 at rank 128"),
    (dict(rank=64, alpha=64.0, rslora=True), "Try 1 to 4"),
    (dict(learning_rate=1e-6, steps=20), "save_precision"),
    (dict(sample_every=1, sample_prompts=("a cat", "a dog")), "sample_every is 1"),
]
DATA = [
    (dict(count=5), dict(steps=3000), "5 pictures are shown about 600 times each"),
    (dict(count=5, prior=5), dict(steps=6000), "5 pictures are shown about 600 times each"),
    (dict(count=5, repeats=100), dict(epochs=10), "5 pictures are shown about 1000 times each"),
    (dict(count=3), dict(batch_size=8, steps=100), "batch_size is 8"),
    (dict(side=256), {}, "the largest picture is 256 x 256"),
    (dict(caption=""), {}, "by 'ohwx' alone"),
    (dict(caption="", trigger_word=""), {}, "without any words"),
]


@pytest.mark.parametrize(("optimizer", "rate", "word"), RATES)
def test_a_learning_rate_far_off_is_said_with_one_to_try(optimizer: str, rate: float, word: str) -> None:
    (note,) = notes(optimizer=optimizer, learning_rate=rate)
    assert f"learning_rate is {rate:g}, {word} for {optimizer}" in note
    assert "Try " in note


@pytest.mark.parametrize(("config", "says"), SETTINGS)
def test_a_setting_that_commonly_fails_is_said(config: dict[str, Any], says: str) -> None:
    (note,) = notes(**config)
    assert says in note


@pytest.mark.parametrize(("pictures", "config", "says"), DATA)
def test_data_that_commonly_fail_are_said(pictures: dict[str, Any], config: dict[str, Any], says: str) -> None:
    (note,) = notes(dataset=data(**pictures), **config)
    assert says in note


def test_the_steps_to_try_are_not_advised_against_again() -> None:
    few = data(count=5)
    (note,) = notes(dataset=few, steps=3000)
    assert "steps 750." in note
    assert notes(dataset=few, steps=750) == []


@pytest.mark.parametrize(
    ("base", "resolution", "fires"),
    [(SDXL, 512, True), (SDXL, 768, False), (SD15, 1024, True), (SD15, 768, False), (FLUX, 512, False)],
)
def test_a_resolution_that_the_model_was_not_made_for_is_said(base: str, resolution: int, fires: bool) -> None:
    found = notes(base, data(resolution=resolution))
    assert [note.startswith(f"resolution is {resolution} on SD") for note in found] == [True] * fires


def test_several_resolutions_count_by_their_largest() -> None:
    assert notes(SDXL, data(resolution=512, extra_resolutions="1024")) == []
    assert "1024 on SD1.5" in notes(SD15, data(resolution=512, extra_resolutions="1024"))[0]


def test_captions_that_share_no_word_want_a_trigger_word() -> None:
    def captioned(*captions: str, trigger_word: str = "") -> Dataset:
        pictures = tuple(Picture(f"{n}.png", 512, 512, caption) for n, caption in enumerate(captions))
        return Dataset(pictures, DatasetSettings(trigger_word=trigger_word))

    few = dict(steps=100)
    (note,) = notes(dataset=captioned("a man on a beach", "a portrait of him", "a street"), **few)
    assert note.startswith("trigger_word is empty")
    assert notes(dataset=captioned("ohwx on a beach", "portrait of Ohwx", "ohwx, street"), **few) == []
    assert notes(dataset=captioned("a beach", "a street", trigger_word="ohwx"), **few) == []


def with_odd_ones(count: int, odd: int, repeats: int = 1, **settings: Any) -> Dataset:
    usual = data(count, **settings)
    more = [Picture(f"odd{n}.png", 512, 2048, "a cat, far", repeats=repeats) for n in range(odd)]
    return Dataset((*usual.pictures, *more), usual.settings)


@pytest.mark.parametrize(
    ("odd", "repeats", "said"),
    [
        (
            1,
            1,
            "1 of 17 pictures have shapes too rare to fill a batch of 8, as odd0.png in 256 x 1024: it counts 8 times",
        ),
        (
            2,
            1,
            "2 of 18 pictures have shapes too rare to fill a batch of 8, as odd0.png in 256 x 1024: it counts 4 times",
        ),
        (1, 3, "counts 2.7 times"),
    ],
)
def test_a_rare_shape_weighs_more_and_that_is_said(odd: int, repeats: int, said: str) -> None:
    found = notes(dataset=with_odd_ones(16, odd, repeats), batch_size=8, steps=100)
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(("odd", "repeats", "batch_size"), [(1, 8, 8), (6, 1, 8), (9, 1, 8), (1, 1, 1), (0, 1, 8)])
def test_shapes_that_weigh_about_alike_need_no_word(odd: int, repeats: int, batch_size: int) -> None:
    assert notes(dataset=with_odd_ones(16, odd, repeats), batch_size=batch_size, steps=100) == []
