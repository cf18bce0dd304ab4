"""Each sample of a batch gets its own caption, its own size, and the right scale."""

from __future__ import annotations

import math
from typing import Any

import comfy.sd
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import attached, find_targets, make_adapters
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture, Sample
from lora_kiln.training.data.encode import Encoders, encode_samples
from lora_kiln.training.learning.batches import Batch
from lora_kiln.training.learning.objective import batch_loss

import models

BATCH = 4
CONFIG = LoRAConfig.of(rank=4, alpha=16.0, min_snr_gamma=5.0, precision="fp32", seed=1)
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
        adapters: dict[str, Any] = make_adapters(targets, CONFIG.adapter, CONFIG.run.seed)
        for number, adapter in enumerate(adapters.values()):
            adapter.up.data = 0.05 * torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(number))
        options = host.transformer_options(small.model)
        groups = host.batch_conds(twin, [conds[row] for row in rows], x_0[rows])
        batch = Batch(x_0[rows], noise[rows], sigma[rows], weight[rows], groups, None, None)
        with attached(targets, adapters, host.PRODUCTS):
            loss, _ = batch_loss(
                lambda x, s, c: host.predict(twin, options, x, s, c),
                host.family(small.model).prediction,
                CONFIG.objective,
                batch,
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
        alone = torch.stack([single[name] for _, single in singles]).mean(0)
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
    samples = [Sample(index, fit, False, "x") for index, fit in enumerate(data.fits())]
    with host.training_mode():
        encoded = encode_samples(data, samples, [], Encoders(small.model, small.clip, small.vae), lambda *_: None)
        factor = small.model.model.latent_format.scale_factor
        shapes = set()
        for sample in samples:
            raw = host.encode_pixels(small.vae, data.pictures[sample.picture].load(sample.fit)[None])
            assert torch.allclose(encoded.latent(sample), raw[0] * factor, atol=1e-6)
            shapes.add(tuple(raw.shape[-2:]))
    assert len(shapes) == 3


def test_a_flipped_sample_is_the_latent_of_the_flipped_picture():
    small = models.sd15()
    pixels = torch.rand(64, 64, 3)
    data = Dataset((Picture("0", 64, 64, "x", pixels=pixels),), DatasetSettings(resolution=64))
    sample = Sample(0, data.fits()[0], True, "x")
    with host.training_mode():
        encoded = encode_samples(data, [sample], [], Encoders(small.model, small.clip, small.vae), lambda *_: None)
        pixels = data.pictures[0].load(sample.fit).flip(1)
        expected = small.model.model.process_latent_in(host.encode_pixels(small.vae, pixels[None]))[0]
        assert torch.allclose(encoded.latent(sample), expected, atol=1e-6)


def test_model_space_is_that_of_a_latent_format_patched_onto_the_model():
    small = models.sd15()
    other = models.sdxl().model.model.latent_format
    small.model.add_object_patch("latent_format", other)
    latents = torch.randn(1, 4, 8, 8)
    ours = host.to_model_space(small.model, latents)
    assert torch.equal(ours, other.process_in(latents))
    assert not torch.equal(ours, small.model.model.process_latent_in(latents))
    assert torch.allclose(host.from_model_space(small.model, ours), latents, atol=1e-6)


def test_parentheses_are_text_in_a_caption_and_weights_in_a_prompt():
    clip = models.sd15().clip
    caption, escaped = (host.encode_text(clip, text)[0][0] for text in ("a (cat:1.5)", "a \\(cat:1.5\\)"))
    prompt = host.encode_text(clip, "a (cat:1.5)", is_prompt=True)[0][0]
    assert torch.equal(caption, escaped)
    assert torch.equal(caption, host.encode_text(clip, "a \\(cat:1.5\\)", is_prompt=True)[0][0])
    assert not torch.allclose(caption, prompt)


# ---------------------------------------------------------------- flow models and other transformers


def test_shift_is_the_models_own():
    assert host.family(models.sd15().model).shift == 1.0
    assert host.family(models.sd3().model).shift == 3.0
    assert host.family(models.flux(guidance=False).model).shift == 1.0
    flux = host.family(models.flux().model)
    assert flux.prediction.name == "flow"
    assert flux.shift == pytest.approx(math.exp(1.15))
    sigmas = flux.prediction.sigmas
    u = torch.arange(1, len(sigmas) + 1) / len(sigmas)
    assert torch.allclose(sigmas, flux.shift * u / (1.0 + (flux.shift - 1.0) * u), atol=1e-6)


def test_shift_of_a_patched_sampling_is_the_patchs():
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    assert host.family(ModelSamplingSD3().patch(models.sd3().model, 5.5)[0]).shift == 5.5


def test_a_model_with_distilled_guidance_is_told_it_in_training():
    model = models.flux().model
    latents, text = (
        models.random_latents(model, 2, seed=1),
        [models.random_conditioning(model, seed) for seed in (2, 3)],
    )
    with host.training_mode():
        twin = host.trainable_view(model, torch.float32)
        ((_, trained),) = host.batch_conds(twin, text, latents, guidance=host.training_guidance(twin))
        ((_, sampled),) = host.batch_conds(twin, text, latents)
        options, sigma = host.transformer_options(model), torch.tensor([0.5, 0.5])
        low, high = (host.predict(twin, options, latents, sigma, [([0, 1], cond)]) for cond in (trained, sampled))
    assert trained["guidance"].tolist() == [1.0, 1.0]
    assert sampled["guidance"].tolist() == [3.5, 3.5]
    assert not torch.allclose(low, high, atol=1e-4)
    assert "guidance" not in text[0][0][1]


def test_chroma_keeps_the_guidance_it_was_made_with():
    model = models.chroma().model
    latents = models.random_latents(model, 1, seed=1)
    with host.training_mode():
        twin = host.trainable_view(model, torch.float32)
        ((_, cond),) = host.batch_conds(twin, [models.random_conditioning(model, 2)], latents, guidance=1.0)
    assert not host.takes_guidance(model) and host.takes_guidance(models.flux().model)
    assert cond["guidance"].tolist() == [0.0]


@pytest.mark.parametrize("name", ["sd3", "flux", "lumina2", "z_image", "qwen_image"])
def test_conditionings_of_other_lengths_are_predicted_each_for_itself(name):
    model = models.TRANSFORMERS[name]()
    short, long = models.random_conditioning(model, 2), models.random_conditioning(model, 3)
    short = [[short[0][0][:, :4], {key: _cut(value) for key, value in short[0][1].items()}]]
    x_t, sigma = models.random_latents(model, 3, seed=1), torch.tensor([0.2, 0.5, 0.8])
    with host.training_mode(), torch.no_grad():
        twin, options = host.trainable_view(model, torch.float32), host.transformer_options(model)
        groups = host.batch_conds(twin, [long, short, long], x_t)
        together = host.predict(twin, options, x_t, sigma, groups)
        assert [rows for rows, _ in groups] == [[0, 2], [1]]
        for row, text in enumerate((long, short, long)):
            alone = host.batch_conds(twin, [text], x_t[row : row + 1])
            one = host.predict(twin, options, x_t[row : row + 1], sigma[row : row + 1], alone)
            assert torch.allclose(together[row : row + 1], one, atol=1e-4)


def _cut(value: torch.Tensor | None) -> torch.Tensor | None:
    return value[:, :4] if value is not None and value.dtype == torch.int64 else value


# ---------------------------------------------------------------- what belongs together


@pytest.mark.parametrize("make", [models.sd15, models.sdxl, models.sd3, models.flux, models.chroma, models.pixart])
def test_a_checkpoints_own_parts_go_together(make):
    small = make()
    host.check_compatible(small.model, small.clip, small.vae)


def test_a_family_that_is_not_known_to_train_rightly_is_refused_by_name():
    flux = models.flux()
    with pytest.raises(InputError, match="model is a LongCatImage, which cannot be trained so far: SD1.5, .* can"):
        host.check_compatible(models.long_cat_image(), flux.clip, flux.vae)


def test_an_inpainting_flux_is_refused():
    flux = models.flux()
    flux.model.model.model_config.unet_config["in_channels"] = 96
    with pytest.raises(InputError, match="takes 96 channels and gives 16: it is an inpainting or control model"):
        host.check_compatible(flux.model, flux.clip, flux.vae)


@pytest.mark.parametrize(
    ("model", "clip", "problem"),
    [
        (models.sd3, models.flux, "clip gives embeddings 32 wide, the model takes 4096"),
        (models.flux, models.sd3, "clip gives embeddings 4096 wide, the model takes 32"),
        (models.flux, models.chroma, "clip gives no pooled embedding, which the model needs"),
        (models.sdxl, models.sd15, "clip gives embeddings 32 wide, the model takes 64"),
    ],
)
def test_a_clip_of_another_family_is_refused(model, clip, problem):
    own = model()
    with pytest.raises(InputError, match=problem):
        host.check_compatible(own.model, clip().clip, own.vae)


def test_a_pooled_embedding_of_another_width_is_refused():
    small = models.sd3()
    small.model.model.adm_channels = 2048
    with pytest.raises(InputError, match="clip gives a pooled embedding 64 wide, the model takes 2048"):
        host.check_compatible(small.model, small.clip, small.vae)


def test_a_vae_of_another_family_is_refused():
    small = models.flux()
    with pytest.raises(InputError, match=r"vae gives latents with 4 channels, the model \(Flux\) takes 16"):
        host.check_compatible(small.model, small.clip, models.sdxl().vae)


def test_a_vae_that_takes_a_batch_for_a_video_gets_pictures_one_by_one():
    from comfy.ldm.wan.vae import WanVAE

    shape = dict(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[])
    network = WanVAE(**shape, temperal_downsample=[False, True, True], dropout=0.0)
    models.randomise(network, 0)
    vae = comfy.sd.VAE(sd=network.state_dict())
    pixels = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(1))
    latents = host.encode_pixels(vae, pixels)
    assert latents.shape == (2, 16, 1, 4, 4) and latents.isfinite().all()
    for latent, picture in zip(latents, pixels, strict=True):
        assert torch.equal(latent, host.encode_pixels(vae, picture[None])[0])
