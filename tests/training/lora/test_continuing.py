"""A LoRA to go on from: what of it is trained, what stays, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.lora.continuing import Continued, continued
from lora_kiln.training.lora.export import as_format, lora_tensors
from lora_kiln.training.lora.lora import LoRAModel
from lora_kiln.training.lora.peft_dora import with_hosts_dora
from lora_kiln.training.run.prepare import prepare

import models
from loras import random_adapters, random_lora
from training_runs import CONFIG, dataset, graph_models

TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
OTHER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight"


@cache
def small() -> models.Small:
    return models.sd15()


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """The model goes before the host's modules do."""
    yield
    small.cache_clear()


def go_on(start: dict[str, torch.Tensor], model: Any = None, **changes: Any) -> Continued:
    model, clip = (model, None) if model is not None else (small().model, small().clip)
    text_encoder = torch.nn.Module() if clip is None else clip.cond_stage_model
    config = CONFIG.changed(**changes)
    return continued(start, host.changeable_names(model, clip), config, model.model, text_encoder)


def entries(key: str, rank: int = 2, alpha: float = 2.0) -> dict[str, torch.Tensor]:
    name = host.layer_names(small().model)[key].kohya
    factors = {"lora_down.weight": torch.ones(rank, models.WIDTH), "lora_up.weight": torch.ones(models.WIDTH, rank)}
    return {f"{name}.{entry}": tensor for entry, tensor in {**factors, "alpha": torch.tensor(alpha)}.items()}


def test_a_z_image_lora_of_ai_toolkit_is_trained_on_whole() -> None:
    model = models.z_image()
    names = host.layer_names(model)
    generator = torch.Generator().manual_seed(0)
    start = {}
    for part in ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w1"):
        out = names["diffusion_model.layers.0.feed_forward.w1.weight"].shape[0] if part.startswith("feed") else 256
        path = f"diffusion_model.layers.0.{part}"
        start[f"{path}.lora_A.weight"] = torch.randn(2, 256, generator=generator)
        start[f"{path}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
    found = go_on(start, model)
    layers = ("attention.qkv", "attention.out", "feed_forward.w1")
    assert found.adapters.keys() == {f"diffusion_model.layers.0.{layer}.weight" for layer in layers}
    assert found.frozen == {} and not any("left out" in note for note in found.notes)


def test_alpha_0_is_said_of_start_and_not_of_the_recipe() -> None:
    lora = random_lora(small(), wanted=lambda key, shape: key in (KEY, OTHER), alpha=0.0)
    with pytest.raises(InputError, match="(?s)Train LoRA cannot.*start has alpha 0 in all 2 layers.*another LoRA"):
        go_on(lora)


def test_layers_with_alpha_0_stay_as_they_are() -> None:
    start = {**entries(KEY, alpha=2.0), **entries(OTHER, alpha=0.0)}
    found = go_on(start)
    assert found.adapters.keys() == {KEY} and found.frozen.keys() == entries(OTHER).keys()
    assert any("alpha 0 in 1 layers" in note and OTHER in note for note in found.notes)


@pytest.mark.parametrize(
    ("start", "field", "says"),
    [
        (dict(rank=2000, alpha=2000.0), "rank 2000", "says 1024"),
        (dict(rank=2, alpha=20_000.0), "alpha 20000", "says 10000"),
        (dict(rank=2, alpha=-2.0), "alpha -2", "says 0.001"),
    ],
)
def test_numbers_that_no_recipe_can_hold_are_trained_on_all_the_same(start: dict, field: str, says: str) -> None:
    found = go_on(entries(KEY, **start))
    assert (found.adapters[KEY].rank, found.adapters[KEY].alpha) == tuple(start.values())
    assert any(field in note and says in note for note in found.notes)


@pytest.mark.parametrize("alpha", [9999999999.0, torch.inf, 0.0, -1.0, torch.nan])
def test_any_alpha_of_a_lokr_with_whole_factors_will_do(alpha: float) -> None:
    name = host.layer_names(small().model)[KEY].kohya
    start = {f"{name}.lokr_w1": torch.ones(4, 4), f"{name}.lokr_w2": torch.ones(8, 8)}
    found = go_on({**start, f"{name}.alpha": torch.tensor(alpha)})
    torch.testing.assert_close(found.adapters[KEY].difference(), torch.ones(32, 32))
    assert found.config.adapter.kind == "lokr"


def test_an_adapter_on_what_is_no_linear_layer_or_convolution_stays() -> None:
    """The host loads it for embeddings and norms too."""
    names = host.layer_names(None, small().clip)
    key = next(key for key in names if key.endswith("token_embedding.weight"))
    adapters = random_adapters(names, wanted=lambda each, shape: each == key)
    start = {f"{names[key].kohya}.{entry}": tensor for entry, tensor in adapters[key].tensors().items()}
    found = go_on({**entries(KEY), **start}, text_encoder_learning_rate=1e-4)
    assert found.adapters.keys() == {KEY} and found.frozen.keys() == start.keys()


def test_what_is_no_adapters_is_named() -> None:
    found = go_on({**entries(KEY), **{f"bundle_emb.anna{n}.clip_l": torch.ones(2, 32) for n in range(7)}})
    assert any("No adapter's, left out: bundle_emb.anna0.clip_l" in note and "2 more" in note for note in found.notes)


def test_what_stays_can_be_saved_in_every_form_of_the_host() -> None:
    """A bias, a norm and a part of a layer: the trained LoRA knows the names of all of them."""
    bias = "diffusion_model.out.2.bias"
    start = {**entries(KEY), f"{bias}.diff": torch.ones(4), f"{bias.removesuffix('.bias')}.diff_b": torch.ones(4)}
    prepared = prepare(graph_models(small()), dataset(), CONFIG, "test", start)
    assert len(prepared.frozen) == 2
    layers = {layer.kohya: layer for layer in prepared.base.layer_names.values()}
    tensors = {**prepared.frozen, **lora_tensors(prepared.adapters, prepared.base.layer_names)}
    for form in ("kohya", "comfyui"):
        assert len(as_format(LoRAModel(tensors, {}, "test", layers), form)) == len(start)


def test_a_dora_of_diffusers_is_trained_on() -> None:
    start = {
        f"{TO_Q}.lora_A.weight": torch.randn(2, models.WIDTH), f"{TO_Q}.lora_B.weight": torch.randn(models.WIDTH, 2),
        f"{TO_Q}.lora_magnitude_vector.weight": torch.rand(models.WIDTH),
    }  # fmt: skip
    prepared = prepare(graph_models(small()), dataset(), CONFIG, "test", start)
    weight = small().model.model.state_dict()[KEY]
    changed = weight + start[f"{TO_Q}.lora_B.weight"] @ start[f"{TO_Q}.lora_A.weight"]
    norms = start[f"{TO_Q}.lora_magnitude_vector.weight"] / changed.norm(dim=1)
    torch.testing.assert_close(prepared.adapters[KEY].merged(weight), changed * norms[:, None])


def test_a_dora_of_diffusers_on_weights_that_cannot_be_read_is_refused_in_words() -> None:
    """As other packs store them; the bytes of such a tensor are no numbers of the weight."""

    class Packed(torch.Tensor):
        pass

    model = models.sd15().model
    layer = model.model.get_submodule(KEY.removesuffix(".weight"))
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8).as_subclass(Packed), requires_grad=False)
    start = {
        f"{TO_Q}.lora_A.weight": torch.ones(2, models.WIDTH), f"{TO_Q}.lora_B.weight": torch.ones(models.WIDTH, 2),
        f"{TO_Q}.lora_magnitude_vector.weight": torch.ones(models.WIDTH),
    }  # fmt: skip
    with pytest.raises(InputError, match="stored as Packed.*DoRA.*another format"):
        with_hosts_dora(start, host.layer_names(model), model, None)
