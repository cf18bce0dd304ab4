"""Latents, masks and embeddings: the same with and without a cache, and computed only when nothing knows them."""

import hashlib
import itertools
import json
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data import encode as room
from lora_kiln.training.data import store
from lora_kiln.training.data.buckets import Fit
from lora_kiln.training.data.cache import Cache
from lora_kiln.training.data.cache_keys import CacheKeys
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture, Sample, size_conditioning
from lora_kiln.training.data.encode import Encoders, encode_samples, latent_spread, sized
from lora_kiln.training.learning.prefetch import NotHere
from PIL import Image

import models
from profiles import ADOBE

SIZES = dict(resolution=64, bucket_step=16, shortest_side=32, longest_side=128)
SEED = 3


@pytest.fixture(scope="module")
def small() -> models.Small:
    return models.sd15()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the VAE and the CLIP are asked to encode from now on."""
    counts = SimpleNamespace(pictures=0, calls=0, texts=[])
    encode_pixels, encode_text = host.encode_pixels, host.encode_text

    def count_pixels(vae, pixels):
        counts.pictures += len(pixels)
        counts.calls += 1
        return encode_pixels(vae, pixels)

    def count_text(clip, text, is_prompt=False):
        counts.texts.append(text)
        return encode_text(clip, text, is_prompt=is_prompt)

    monkeypatch.setattr(host, "encode_pixels", count_pixels)
    monkeypatch.setattr(host, "encode_text", count_text)
    return counts


def image(seed: int, width: int = 80, height: int = 64) -> torch.Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def dataset(count: int = 3, pixels=image, **settings) -> Dataset:
    pictures = [Picture(f"p{n}", 80, 64, f"caption {n}", pixels=pixels(n)) for n in range(count)]
    return Dataset(tuple(pictures), DatasetSettings(**SIZES, **settings))


def samples_of(data: Dataset, epochs: int = 1) -> list[Sample]:
    return [s for epoch in range(epochs) for batch in data.epoch_batches(epoch, 2, SEED) for s in batch]


def encoders(small: models.Small) -> Encoders:
    return Encoders(small.model, small.clip, small.vae)


def encode(small: models.Small, data: Dataset, cache=None, prompts=(), samples=None, **options):
    samples = samples_of(data) if samples is None else samples
    with host.training_mode():
        return encode_samples(data, samples, prompts, encoders(small), lambda *_: None, cache=cache, **options)


# ---------------------------------------------------------------- with a cache and without


def test_all_is_the_same_bits_from_memory_from_disk_and_after_a_restart(small, path: Path) -> None:
    data = dataset(flip=True, random_crop=True, extra_resolutions="96", shuffle_tags=True)
    samples = samples_of(data, 3)
    runs = [encode(small, data, None, ["a prompt"], samples)]
    with Cache(path, 10**9) as first:
        runs.append(encode(small, data, first, ["a prompt"], samples))
        with Cache(path, 10**9) as second:
            runs.append(encode(small, data, second, ["a prompt"], samples))
            for sample in samples:
                latents = [run.latent(sample) for run in runs]
                texts = [run.conditioning(data, sample, False)[0] for run in runs]
                assert all(torch.equal(latents[0], other) for other in latents[1:])
                assert all(torch.equal(texts[0][0], other[0]) for other in texts[1:])
                pooled = [text[1]["pooled_output"] for text in texts]
                assert all(torch.equal(pooled[0], other) for other in pooled[1:])
            assert all(torch.equal(runs[0].prompts["a prompt"][0][0], run.prompts["a prompt"][0][0]) for run in runs)


def test_a_second_run_computes_nothing(small, path: Path, asked) -> None:
    data = dataset(flip=True)
    with Cache(path, 10**9) as cache:
        encode(small, data, cache, ["", "a prompt"])
    assert asked.pictures == 3 and sorted(asked.texts) == ["", "a prompt", "caption 0", "caption 1", "caption 2"]
    told = []
    with Cache(path, 10**9) as cache, host.training_mode():
        encoded = encode_samples(
            data, samples_of(data), ["", "a prompt"], encoders(small),
            lambda *progress: told.append(progress), cache=cache,
        )  # fmt: skip
        for sample in samples_of(data):
            encoded.latent(sample), encoded.conditioning(data, sample, True)
    assert asked.pictures == 3 and len(asked.texts) == 5 and told == []


@pytest.mark.parametrize("together", [False, True])
def test_only_what_is_new_is_computed(small, path: Path, asked, together: bool) -> None:
    with Cache(path, 10**9) as cache:
        encode(small, dataset(3), cache, together=together)
        encode(small, dataset(5), cache, together=together)
        assert asked.pictures == 5 and len(asked.texts) == 5


def test_pictures_of_one_size_may_go_through_the_vae_together(small, asked, monkeypatch) -> None:
    number, fit = 8, samples_of(dataset(1))[0].fit
    monkeypatch.setattr(room, "PIXELS_TOGETHER", number * fit.width * fit.height)
    encoded = encode(small, dataset(2 * number + 1), together=True)
    assert (asked.pictures, asked.calls) == (2 * number + 1, 3)
    alone = encode(small, dataset(2 * number + 1))
    assert asked.calls == 3 + 2 * number + 1
    for sample in samples_of(dataset(2 * number + 1)):
        torch.testing.assert_close(encoded.latent(sample), alone.latent(sample), rtol=1e-4, atol=1e-5)
    asked.calls = 0
    wide = tuple(Picture(f"w{n}", 128, 40, pixels=image(n, 128, 40)) for n in range(2))
    encode(small, Dataset((*dataset(2).pictures, *wide), DatasetSettings(**SIZES)), together=True)
    assert asked.calls == 2


def test_large_pictures_go_alone(small, asked, monkeypatch) -> None:
    monkeypatch.setattr(room, "PIXELS_TOGETHER", 1)
    encode(small, dataset(3), together=True)
    assert (asked.pictures, asked.calls) == (3, 3)


def test_a_run_that_must_be_exact_takes_no_latents_of_several(small, path: Path) -> None:
    data = dataset(5)
    expected = [encode(small, data).latent(sample) for sample in samples_of(data)]
    with Cache(path, 10**9) as cache:
        encode(small, data, cache, together=True)
        encode(small, dataset(1), cache)
        assert all(map(torch.equal, map(encode(small, data, cache).latent, samples_of(data)), expected))


def test_what_the_cache_lost_gets_the_bits_that_it_had(small, path: Path, asked, monkeypatch) -> None:
    monkeypatch.setattr(store, "MEMORY", 0)
    data = dataset(5)
    samples = samples_of(data)
    with Cache(path, 10**9) as cache:
        running = encode(small, data, cache)
        expected = list(map(running.latent, samples))
        database = sqlite3.connect(path, isolation_level=None)
        for anew in (lambda: running, lambda: encode(small, data, cache)):  # in the middle of a run, and before one
            asked.pictures = 0
            database.execute("DELETE FROM blobs WHERE rowid % 2")
            assert all(map(torch.equal, map(anew().latent, samples), expected))
            assert asked.pictures


def changed_weight(module: torch.nn.Module) -> None:
    with torch.inference_mode():
        next(iter(module.parameters())).add_(1e-3)


@pytest.mark.parametrize(
    ("change", "pictures", "texts"),
    [
        ("nothing", 0, 0),
        ("content", 3, 0),
        ("fit", 3, 0),
        ("caption", 0, 3),
        ("vae", 3, 0),
        ("clip", 0, 3),
        ("clip skip", 0, 3),
    ],
)
def test_what_something_follows_from_is_in_its_name(path: Path, asked, change: str, pictures: int, texts: int) -> None:
    small, data = models.sd15(), dataset()
    with Cache(path, 10**9) as cache:
        encode(small, data, cache)
        before = (asked.pictures, len(asked.texts))
        if change == "content":
            data = dataset(pixels=lambda seed: image(seed).flip(0))
        elif change == "fit":
            data = Dataset(data.pictures, DatasetSettings(**{**SIZES, "resolution": 96}))
        elif change == "caption":
            data = data.with_captions({n: f"another {n}" for n in range(3)})
        elif change == "vae":
            changed_weight(small.vae.first_stage_model)
        elif change == "clip":
            changed_weight(small.clip.cond_stage_model)
        elif change == "clip skip":
            small.clip.clip_layer(-2)
        encode(small, data, cache)
        assert (asked.pictures - before[0], len(asked.texts) - before[1]) == (pictures, texts)


def test_a_caption_and_a_prompt_of_one_text_are_two_things(small, path: Path) -> None:
    data = dataset(1).with_captions({0: "a (cat:1.5)"})
    with Cache(path, 10**9) as cache:
        encoded = encode(small, data, cache, ["a (cat:1.5)"])
        (sample,) = samples_of(data)
        assert not torch.equal(encoded.conditioning(data, sample, False)[0][0], encoded.prompts["a (cat:1.5)"][0][0])


def test_a_changed_file_is_encoded_again(small, tmp_path: Path, path: Path, asked) -> None:
    file = tmp_path / "a.png"
    data = Dataset((Picture("a", 64, 64, path=file),), DatasetSettings(**SIZES))
    with Cache(path, 10**9) as cache:
        for seconds, color in ((100, "red"), (90, "red"), (80, "blue")):
            Image.new("RGB", (64, 64), color).save(file)
            os.utime(file, (time.time() - seconds,) * 2)
            encode(small, data, cache)
    assert asked.pictures == 2


def test_what_has_gone_from_the_cache_is_computed_again(small, path: Path) -> None:
    data = dataset()
    with Cache(path, 10**9) as cache:
        encoded = encode(small, data, cache)
        expected = [encoded.latent(sample) for sample in samples_of(data)]
        encoded = encode(small, data, cache)
        with Cache(path, 0) as other:
            other._started_at = time.time() + 1
            other.trim()
        assert all(map(torch.equal, (encoded.latent(sample) for sample in samples_of(data)), expected))


def test_another_thread_takes_what_is_there_and_leaves_the_models_alone(small, path: Path, monkeypatch, asked) -> None:
    monkeypatch.setattr(store, "MEMORY", 0)  # one of them stays
    data = dataset()
    with Cache(path, 10**9) as cache, ThreadPoolExecutor(1) as thread:
        encoded = encode(small, data, cache)
        first, *others = samples_of(data)
        expected = encoded.latent(first)
        assert torch.equal(thread.submit(encoded.latent, first).result(), expected)
        for sample in others:
            thread.submit(encoded.latent, sample).result()
        sqlite3.connect(path, isolation_level=None).execute("DELETE FROM blobs")
        asked.pictures = 0
        with pytest.raises(NotHere):
            thread.submit(encoded.latent, first).result()
        with pytest.raises(NotHere):
            thread.submit(encoded.conditioning, data, first, False).result()
        assert (asked.pictures, torch.equal(encoded.latent(first), expected)) == (0, True)
        assert asked.pictures == 1 and torch.equal(thread.submit(encoded.latent, first).result(), expected)


def test_texts_that_name_embedding_files_are_not_kept_on_disk(small, path: Path, asked) -> None:
    data = dataset(1).with_captions({0: "a photo by embedding:someone"})
    for _ in range(2):
        with Cache(path, 10**9) as cache:
            encode(small, data, cache).conditioning(data, samples_of(data)[0], False)
    assert len(asked.texts) == 2


def test_what_the_cache_holds_does_not_fill_the_memory(small, path: Path, monkeypatch) -> None:
    one = 4 * 8 * 8 * 4
    monkeypatch.setattr(store, "MEMORY", 4 * one)
    data = dataset(12, pixels=lambda seed: image(seed, 64, 64))
    with Cache(path, 10**9) as cache:
        encoded = encode(small, data, cache)
        for sample in samples_of(data):
            encoded.latent(sample)
            held = sum(store._bytes(value) for value in encoded._store._recent.values())
            assert held <= 4 * one and not encoded._store._uncached


def test_an_interrupt_keeps_what_was_encoded(small, path: Path, asked) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("pictures", 2):
            raise KeyboardInterrupt

    data = dataset()
    with Cache(path, 10**9) as cache, host.training_mode():
        with pytest.raises(KeyboardInterrupt):
            encode_samples(data, samples_of(data), [], encoders(small), stop, cache=cache)
        encode(small, data, cache)
    assert asked.pictures == 3


# ---------------------------------------------------------------- what a sample gets


def test_a_crops_latent_is_that_of_the_cropped_picture(small) -> None:
    data = dataset(1, random_crop=True, flip=True, pixels=lambda seed: image(seed, 128, 40))
    data = Dataset((Picture("long", 128, 40, pixels=image(0, 128, 40)),), data.settings)
    samples = samples_of(data, 40)
    encoded = encode(small, data, samples=samples)
    assert len(set(samples)) > 4
    for sample in set(samples):
        pixels = data.pictures[0].load(sample.fit)
        raw = host.encode_pixels(small.vae, (pixels.flip(1) if sample.flipped else pixels)[None])
        assert torch.equal(encoded.latent(sample), host.to_model_space(small.model, raw.float())[0])


def test_a_sample_is_told_its_own_crop() -> None:
    sdxl = models.sdxl()
    data = Dataset((Picture("long", 128, 40, "x", pixels=image(0, 128, 40)),), DatasetSettings(**SIZES, flip=True))
    samples = samples_of(data, 6)
    encoded = encode(sdxl, data, samples=samples)
    for sample in samples:
        options = encoded.conditioning(data, sample, True)[0][1]
        expected = size_conditioning(data.pictures[0], sample.fit, sample.flipped)
        assert {key: options[key] for key in expected} == expected
        assert not expected.keys() & encoded.conditioning(data, sample, False)[0][1].keys()


def test_sizes_go_into_any_conditioning_and_leave_it_as_it_was() -> None:
    data = dataset(1)
    (sample,) = samples_of(data)
    conditioning = [[torch.zeros(1, 2, 3), {"pooled_output": None}]]
    assert sized(conditioning, data, sample)[0][1]["target_width"] == sample.fit.width
    assert sized(conditioning, data, sample, False) is conditioning and conditioning[0][1] == {"pooled_output": None}


def test_without_captions_no_caption_is_encoded(small, asked) -> None:
    data = dataset()
    encoded = encode(small, data, None, ["a prompt"], captions=False)
    assert asked.texts == ["a prompt"]
    with pytest.raises(ValueError, match="captions were not encoded"):
        encoded.conditioning(data, samples_of(data)[0], False)


def test_latents_that_are_no_numbers_are_refused(small, monkeypatch) -> None:
    monkeypatch.setattr(host, "encode_pixels", lambda vae, pixels: torch.full((1, 4, 8, 8), torch.nan))
    with pytest.raises(InputError, match="encodes p0 to values that are no numbers"):
        encode(small, dataset())


def test_the_spread_is_that_of_the_latents(small) -> None:
    data = dataset(5)
    encoded = encode(small, data)
    latents = torch.cat([encoded.latent(sample).flatten() for sample in samples_of(data)])
    assert latent_spread(encoded) == pytest.approx(latents.std().item(), rel=1e-5)


def test_the_spread_looks_at_few_of_many(small, monkeypatch) -> None:
    encoded = encode(small, dataset(5))
    encoded.views = encoded.views * 100
    seen, latent = [], encoded.latent
    monkeypatch.setattr(encoded, "latent", lambda sample: seen.append(sample) or latent(sample))
    latent_spread(encoded)
    assert 1 < len(seen) <= 64


# ---------------------------------------------------------------- masks


def with_mask(mask: torch.Tensor | None, width: int = 64, height: int = 64, **settings) -> Dataset:
    picture = Picture("a", width, height, "x", pixels=image(0, width, height), mask_pixels=mask)
    return Dataset((picture,), DatasetSettings(**SIZES, masked_loss=True, **settings))


def only(small, data: Dataset, cache=None, epochs: int = 1):
    samples = samples_of(data, epochs)
    encoded = encode(small, data, cache, samples=samples)
    return [(sample, encoded.latent(sample), encoded.mask(sample)) for sample in samples]


def test_a_mask_comes_in_the_latents_size_by_area(small) -> None:
    mask = torch.zeros(64, 64)
    mask[:, :28] = 1.0
    mask[3, 60] = 1.0
    ((_, latent, seen),) = only(small, with_mask(mask))
    expected = mask.reshape(8, 8, 8, 8).mean((1, 3))
    assert seen.dtype == torch.float32 and seen.shape == latent.shape[-2:]
    torch.testing.assert_close(seen, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("unmasked", [0.0, 0.1, 1.0])
def test_what_is_left_out_has_the_unmasked_weight(small, unmasked: float) -> None:
    mask = torch.zeros(64, 64)
    mask[:32] = 1.0
    mask[32:40] = 0.6
    ((_, _, seen),) = only(small, with_mask(mask, unmasked_weight=unmasked))
    assert seen[:4].unique().tolist() == [1.0]
    torch.testing.assert_close(seen[4], torch.full((8,), 0.6 + 0.4 * unmasked))
    torch.testing.assert_close(seen[5:], torch.full((3, 8), unmasked))


def test_a_mask_is_mirrored_and_cropped_with_its_picture(small) -> None:
    """The picture's own brightness says where its mask is white."""
    pixels = torch.zeros(40, 160, 3)
    pixels[:, 70:] = 1.0
    picture = Picture("a", 160, 40, "x", pixels=pixels, mask_pixels=pixels[..., 0])
    settings = DatasetSettings(**{**SIZES, "longest_side": 64}, masked_loss=True, flip=True, random_crop=True)
    views = only(small, Dataset((picture,), settings), epochs=40)
    assert len({(sample.fit, sample.flipped) for sample, _, _ in views}) > 8
    for sample, _, mask in views:
        shown = picture.load(sample.fit)[..., 0]
        shown = shown.flip(1) if sample.flipped else shown
        pooled = torch.nn.functional.avg_pool2d(shown[None], 8)[0]
        torch.testing.assert_close(mask, pooled, atol=0.05, rtol=0)


@pytest.mark.parametrize("masked_loss", [True, False])
def test_without_a_mask_or_masked_loss_there_is_none(small, masked_loss: bool) -> None:
    data = with_mask(None if masked_loss else torch.ones(64, 64))
    data = Dataset(data.pictures, DatasetSettings(**SIZES, masked_loss=masked_loss))
    ((_, _, mask),) = only(small, data)
    assert mask is None


def test_masks_lie_in_the_cache_by_their_own_content(small, path: Path) -> None:
    masks = [torch.ones(64, 64), torch.zeros(64, 64).index_fill(0, torch.arange(32), 1.0)]
    expected = [only(small, with_mask(mask))[0][2] for mask in masks]
    with Cache(path, 10**9) as cache:
        for mask, want in itertools.chain(zip(masks, expected, strict=True), zip(masks, expected, strict=True)):
            assert torch.equal(only(small, with_mask(mask), cache)[0][2], want)


def test_latents_of_plain_pictures_stay_in_the_cache_and_those_in_wrong_colours_do_not(small, tmp_path: Path) -> None:
    """Earlier versions read pictures with a profile, and fractions, in other colours."""
    Image.new("RGB", (64, 48), (1, 100, 200)).save(tmp_path / "wide.png", icc_profile=ADOBE)
    Image.new("F", (64, 48), 0.5).save(tmp_path / "fractions.tif")
    Image.new("RGB", (64, 48), (1, 100, 200)).save(tmp_path / "plain.png")
    fit, changed = Fit(64, 48, 64, 48, 0, 0), set()
    with Cache(tmp_path / "cache.sqlite", 10**9) as cache:
        for path in (tmp_path / "wide.png", tmp_path / "fractions.tif", tmp_path / "plain.png"):
            keys = CacheKeys(Dataset((Picture(path.name, 64, 48, path=path),)), small.clip, small.vae, cache, False)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            before = json.dumps([host.model_fingerprint(small.vae), digest, astuple(fit), False])
            if keys.latent(0, fit, flipped=False) != f"latent 1 {hashlib.sha256(before.encode()).hexdigest()}":
                changed.add(path.name)
    assert changed == {"wide.png", "fractions.tif"}


def test_masks_that_leave_nothing_of_any_crop_are_said(small, tmp_path: Path) -> None:
    """White at the sides alone, which the bucket cuts off."""
    Image.new("RGB", (200, 64), "red").save(tmp_path / "a.png")
    mask = Image.new("L", (200, 64), 0)
    mask.paste(255, (0, 0, 20, 64))
    mask.save(tmp_path / "a_mask.png")
    one = Picture("a.png", 200, 64, path=tmp_path / "a.png", mask_path=tmp_path / "a_mask.png")
    for unmasked_weight in (0.0, 0.5):
        square = {**SIZES, "shortest_side": 64, "longest_side": 64}
        data = Dataset((one,), DatasetSettings(**square, masked_loss=True, unmasked_weight=unmasked_weight))
        if unmasked_weight:
            encode(small, data)
            continue
        with pytest.raises(InputError, match="leave nothing to learn"):
            encode(small, data)
