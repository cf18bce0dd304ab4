"""What is refused: models that cannot be trained, and parts of different families."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.supported_models
import pytest
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError

import models


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


def test_all_that_a_loader_has_left_empty_is_named_at_once():
    """A checkpoint without a text encoder gives no CLIP, and one without a VAE gives an empty one."""
    small, empty = models.sd15(), comfy.sd.VAE(sd={})
    host.check_present(small.model, small.clip, small.vae, "Train LoRA")
    for given, words in (
        ((small.model, None, small.vae), ["clip is missing"]),
        ((small.model, small.clip, None), ["vae is missing"]),
        ((None, None, empty), ["model is missing", "clip is missing", "vae is missing"]),
    ):
        with pytest.raises(InputError, match="Train LoRA") as refused:
            host.check_present(*given, "Train LoRA")
        assert [problem.partition(":")[0] for problem in refused.value.problems] == words


PICTURES = {"SD15": 9, "SD20": 9, "SDXL": 9, "SD15_instructpix2pix": 8, "SDXL_instructpix2pix": 8, "SD_X4Upscaler": 7}
VECTORS = ("SD21UnclipL", "SD21UnclipH", "LotusD")
VECTOR = {"num_classes": "sequential", "adm_in_channels": models.WIDTH + 6 * 256}


def unet(kind: str, in_channels: int, **changes: Any) -> Any:
    """A MODEL of the host's own class for a UNet, narrow."""
    config = getattr(comfy.supported_models, kind)({**models.UNET, "context_dim": models.WIDTH, **changes})
    config.unet_config.update(in_channels=in_channels, num_heads=4, num_head_channels=-1, disable_self_attentions=None)
    return models._model(config, seed=0)


@pytest.mark.parametrize("kind", PICTURES)
def test_a_unet_that_reads_a_picture_beside_the_latent_is_refused(kind: str) -> None:
    small, changes = models.sd15(), VECTOR if kind.startswith("SDXL") else {}
    model = unet(kind, PICTURES[kind], use_linear_in_transformer=True, **changes)
    problem = f"takes {PICTURES[kind]} channels and gives 4: .* Connect the plain model of its family"
    with pytest.raises(InputError, match=problem):
        host.check_compatible(model, small.clip, small.vae)


@pytest.mark.parametrize("kind", VECTORS)
def test_a_unet_that_reads_more_than_a_text_is_refused(kind: str) -> None:
    small = models.sd15()
    model = unet(kind, 4, use_linear_in_transformer=True, **VECTOR)
    with pytest.raises(InputError, match="reads more than a text: a picture's embedding"):
        host.check_compatible(model, small.clip, small.vae)


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
