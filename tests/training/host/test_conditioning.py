"""Each sample of a batch gets its own caption, its own size, and the right scale."""

from __future__ import annotations

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.attach import attached, find_targets, make_adapters
from lora_kiln.training.batches import Batch
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.dataset import Dataset, DatasetSettings, Picture, Sample
from lora_kiln.training.encode import encode_samples
from lora_kiln.training.loop import batch_loss

import models

BATCH = 4
CONFIG = LoRAConfig(rank=4, min_snr_gamma=5.0, precision="fp32")
TEXTS = ["a red cat", "", "two dogs on a hill", "a house"]
SIZES = [(64, 64, 0, 0), (100, 64, 18, 0), (64, 200, 0, 68), (70, 70, 3, 3)]  # width, height, crop_w, crop_h


def conditionings(small: models.Small, sized: bool):
    out = []
    for text, (width, height, crop_w, crop_h) in zip(TEXTS, SIZES, strict=True):
        (embedding, options), *_ = host.encode_text(small.clip, text)
        size = dict(width=width, height=height, crop_w=crop_w, crop_h=crop_h, target_width=64, target_height=64)
        out.append([[embedding, {**options, **(size if sized else {})}]])
    return out


def loss_and_gradients(small: models.Small, rows: list[int], family_of=None):
    """The loss of some rows of one fixed batch, and the gradients of all adapters."""
    generator = torch.Generator().manual_seed(9)
    x_0, noise = (torch.randn(BATCH, 4, 8, 8, generator=generator) for _ in range(2))
    sigma = torch.tensor([0.3, 1.0, 4.0, 12.0])
    weight = torch.tensor([1.0, 0.5, 1.0, 2.0])
    conds = conditionings(small, host.wants_size_conditioning(small.model))
    with host.training_mode():
        twin = host.trainable_view(small.model, torch.float32)
        targets = find_targets(twin, "all linear and convolution")
        adapters = make_adapters(targets, CONFIG.rank, CONFIG.scale, seed=1)
        for number, adapter in enumerate(adapters.values()):
            adapter.up.data = 0.05 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(number))
        options = host.transformer_options(small.model)
        groups = host.batch_conds(twin, [conds[row] for row in rows], x_0[rows])
        batch = Batch(x_0[rows], noise[rows], sigma[rows], weight[rows], groups)
        with attached(targets, adapters):
            loss = batch_loss(
                lambda x, s, c: host.predict(twin, options, x, s, c), host.family(small.model), batch, CONFIG
            )
            loss.backward()
    gradients = {f"{k}.{n}": p.grad for k, a in adapters.items() for n, p in a.named_parameters()}
    return loss.item(), gradients


@pytest.mark.parametrize("make", [models.sd15, models.sdxl, lambda: models.v_prediction(models.sdxl())])
def test_a_batch_gives_what_its_pictures_give_one_by_one(make):
    small = make()
    loss, gradients = loss_and_gradients(small, list(range(BATCH)))
    singles = [loss_and_gradients(small, [row]) for row in range(BATCH)]
    assert loss == pytest.approx(sum(single for single, _ in singles) / BATCH, rel=1e-5)
    largest = max(gradient.norm() for gradient in gradients.values())  # some are zero but for rounding
    for name, gradient in gradients.items():
        alone = sum(single[name] for _, single in singles) / BATCH
        assert (gradient - alone).norm() <= 1e-5 * alone.norm() + 1e-7 * largest, name


def test_sdxl_gets_each_pictures_own_size_as_the_cores_node_encodes_it():
    small = models.sdxl()
    latents = torch.randn(BATCH, 4, 8, 8)
    conds = conditionings(small, sized=True)
    with host.training_mode():
        twin = host.trainable_view(small.model, torch.float32)
        ((rows, together),) = host.batch_conds(twin, conds, latents)
    assert rows == list(range(BATCH))
    for row, (width, height, crop_w, crop_h) in enumerate(SIZES):
        y = small.model.model.encode_adm(
            device=torch.device("cpu"), pooled_output=conds[row][0][1]["pooled_output"], width=width, height=height,
            crop_w=crop_w, crop_h=crop_h, target_width=64, target_height=64,
        )  # fmt: skip
        assert torch.equal(together["y"][row], y[0])


def test_each_row_carries_its_own_caption():
    small = models.sd15()
    conds = conditionings(small, sized=False)
    with host.training_mode():
        twin = host.trainable_view(small.model, torch.float32)
        ((_, together),) = host.batch_conds(twin, conds, torch.randn(BATCH, 4, 8, 8))
    assert together["c_crossattn"].shape[0] == BATCH
    for row, text in enumerate(TEXTS):
        assert torch.equal(together["c_crossattn"][row], host.encode_text(small.clip, text)[0][0][0])


def test_latents_of_every_bucket_are_in_model_space():
    small = models.sdxl()
    pictures = tuple(
        Picture(str(n), w, h, "x", pixels=torch.rand(h, w, 3))
        for n, (w, h) in enumerate([(64, 64), (96, 48), (48, 96)])
    )
    data = Dataset(pictures, DatasetSettings(resolution=64, bucket_step=16, shortest_side=32))
    samples = [Sample(index, False, "x") for index in range(3)]
    with host.training_mode():
        encoded = encode_samples(data, samples, [], small.model.model, small.clip, small.vae, lambda *_: None)
    factor = small.model.model.latent_format.scale_factor
    shapes = set()
    for sample, fit in zip(samples, data.fits(), strict=True):
        raw = host.encode_pixels(small.vae, data.pictures[sample.picture].load(fit)[None])
        assert torch.allclose(encoded.latents[sample.picture, False], raw[0] * factor, atol=1e-6)
        shapes.add(tuple(raw.shape[-2:]))
    assert len(shapes) == 3


def test_a_flipped_sample_is_the_latent_of_the_flipped_picture():
    small = models.sd15()
    pixels = torch.rand(64, 64, 3)
    data = Dataset((Picture("0", 64, 64, "x", pixels=pixels),), DatasetSettings(resolution=64))
    with host.training_mode():
        encoded = encode_samples(
            data, [Sample(0, True, "x")], [], small.model.model, small.clip, small.vae, lambda *_: None
        )
    pixels = data.pictures[0].load(data.fits()[0]).flip(1)
    expected = small.model.model.process_latent_in(host.encode_pixels(small.vae, pixels[None]))[0]
    assert torch.allclose(encoded.latents[0, True], expected, atol=1e-6)


def test_parentheses_are_text_in_a_caption_and_weights_in_a_prompt():
    clip = models.sd15().clip
    caption, escaped = (host.encode_text(clip, text)[0][0] for text in ("a (cat:1.5)", "a \\(cat:1.5\\)"))
    prompt = host.encode_text(clip, "a (cat:1.5)", is_prompt=True)[0][0]
    assert torch.equal(caption, escaped)
    assert torch.equal(caption, host.encode_text(clip, "a \\(cat:1.5\\)", is_prompt=True)[0][0])
    assert not torch.allclose(caption, prompt)
