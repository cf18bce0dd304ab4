"""Latents of pictures, in the VAE's scale and in the MODEL's."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import torch
from lora_kiln.training import host
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture, Sample
from lora_kiln.training.data.encode import Encoders, encode_samples

import models


def test_model_space_is_that_of_a_latent_format_patched_onto_the_model():
    small = models.sd15()
    other = models.sdxl().model.model.latent_format
    small.model.add_object_patch("latent_format", other)
    latents = torch.randn(1, 4, 8, 8)
    ours = host.to_model_space(small.model, latents)
    assert torch.equal(ours, other.process_in(latents))
    assert not torch.equal(ours, small.model.model.process_latent_in(latents))
    assert torch.allclose(host.from_model_space(small.model, ours), latents, atol=1e-6)


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
