"""Base models in GGUF: they train as their unpacked numbers do, with their own LoRAs and no others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters.base import dense_weight
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import ADAPTERS
from torch import nn

import gguf_base
import models
from gradients import Probe

QKV = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
KINDS = ("Q8_0", "Q4_0", "Q4_K", "Q6_K", "BF16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf")


def probe(small: models.Small, model: object, kind: str = "lora") -> Probe:
    """Adapters on a twin of another MODEL than the small one's."""
    packed = models.Small(model, small.clip, small.vae)
    return Probe(packed, 0.6, host.trainable_twin(model, torch.float32), kind)


def gradients(small: models.Small, model: object, kind: str = "lora") -> list[torch.Tensor]:
    with host.training_mode():
        found = probe(small, model, kind)
        found.gradients()
        return [parameter.grad for parameter in found.parameters if parameter.grad is not None]


def lora_for(model: object, key: str) -> dict[str, torch.Tensor]:
    """A LoRA of rank 1 on one layer."""
    name = host.layer_names(model)[key]
    generator = torch.Generator().manual_seed(1)
    sides = {"lora_up": (name.shape[0], 1), "lora_down": (1, name.shape[1])}
    return {f"{name.kohya}.{side}.weight": torch.randn(shape, generator=generator) for side, shape in sides.items()}


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) > 0 and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_unpacked_weights(kind, folder):
    small = models.flux()
    packed = gguf_base.loaded(small.model, folder, kind)
    assert sum(map(gguf_base.is_packed, packed.model.parameters())) > 10
    assert same(gradients(small, packed), gradients(small, gguf_base.plain(packed)))


def test_every_adapter_trains_on_packed_layers(folder):
    small = models.flux()
    packed = gguf_base.loaded(small.model, folder, "Q8_0")
    plain = gguf_base.plain(packed)
    wrong = [kind for kind in ADAPTERS if not same(gradients(small, packed, kind), gradients(small, plain, kind))]
    assert wrong == []


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_train_on_packed_convolutions(kind, folder):
    small = models.sd15()
    packed = gguf_base.loaded(small.model, folder, "Q8_0")
    assert same(gradients(small, packed, kind), gradients(small, gguf_base.plain(packed), kind))


def test_the_twin_shares_nothing_with_the_model(folder):
    packed = gguf_base.loaded(models.flux().model, folder, "Q4_0")
    with host.training_mode():
        twin = host.trainable_twin(packed, torch.bfloat16)
    theirs = {parameter.data_ptr() for parameter in packed.model.parameters()}
    assert [name for name, own in twin.named_parameters() if own.data_ptr() in theirs] == []
    assert not any(own.is_inference() for own in twin.parameters())
    foreign = [own for own in twin.parameters() if isinstance(own, gguf_base.PackedTensor)]
    assert foreign and all(map(gguf_base.is_packed, foreign))  # numbers are ordinary tensors


def test_loras_above_stay_on_while_training(folder):
    small = models.flux()
    packed = gguf_base.loaded(small.model, folder, "Q8_0")
    lora = lora_for(packed, QKV)
    ours = gradients(small, host.with_lora(packed, None, lora, 0.7)[0])
    theirs = gradients(small, host.with_lora(gguf_base.plain(packed), None, lora, 0.7)[0])
    assert not same(ours, gradients(small, packed))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_a_lora_that_another_model_has_left_on_the_weights_is_not_trained_on(folder):
    small = models.flux()
    packed = gguf_base.loaded(small.model, folder, "Q8_0")
    expected, print_before = gradients(small, packed), host.model_fingerprint(packed)
    other = host.with_lora(packed, None, lora_for(packed, QKV), 1.0)[0]
    comfy.model_management.load_models_gpu([other])
    assert packed.model.get_parameter(QKV).patches  # as after a KSampler with that LoRA
    assert same(gradients(small, packed), expected)
    assert host.model_fingerprint(packed) == print_before
    assert packed.model.get_parameter(QKV).patches  # the other MODEL's are left alone


def test_fingerprints_tell_files_formats_and_loras_apart(folder):
    first, again = (gguf_base.loaded(models.flux().model, folder, "Q8_0") for _ in range(2))
    lora = lora_for(first, QKV)
    others = [
        gguf_base.loaded(models.flux(seed=1).model, folder, "Q8_0"),
        gguf_base.loaded(models.flux().model, folder, "Q4_0"),
        host.with_lora(first, None, lora, 1.0)[0],
    ]
    assert host.model_fingerprint(first) == host.model_fingerprint(again) is not None
    assert len({host.model_fingerprint(each) for each in (first, *others)}) == 4


@pytest.mark.parametrize("make", [models.sd15, models.flux])
def test_layers_have_the_names_and_shapes_of_the_unpacked_model(make, folder):
    model = make().model
    assert host.layer_names(gguf_base.loaded(model, folder, "Q4_K")) == host.layer_names(model)


def test_weights_in_no_packed_format_are_stored_in_8_bits(folder):
    model = gguf_base.loaded(models.flux().model, folder, "Q4_K", whole="txt_mlp")
    with host.training_mode():
        formats = host.linear_formats(host.trainable_twin(model, torch.float32, "fp8"))
    assert set(formats) == {"GGUF Q4_K", host.OURS}


def test_a_packed_text_encoder_encodes_and_trains(folder):
    small, config = models.flux(), {"clip_l_model_config": models.SMALL_CLIP, "t5xxl_model_config": models.SMALL_T5}
    packed = gguf_base.loaded_clip(small, folder, "Q8_0", **config)
    assert host.model_fingerprint(packed) not in (None, host.model_fingerprint(small.clip))
    assert host.layer_names(None, packed) == host.layer_names(None, small.clip)
    with torch.inference_mode():
        small.clip.cond_stage_model.load_state_dict(gguf_base.unpacked_weights(packed.cond_stage_model), strict=False)
        (ours, options), (theirs, _) = host.encode_text(packed, "a cat")[0], host.encode_text(small.clip, "a cat")[0]
    with host.training_mode():
        by_twin = host.encode_text_with(packed, host.trainable_text_encoder(packed), "a cat")[0][0]
    assert type(ours) is type(options["pooled_output"]) is torch.Tensor
    assert torch.equal(ours, theirs)
    assert torch.allclose(by_twin, theirs, rtol=1e-5, atol=1e-5)


class Unknown(torch.Tensor):
    """Packed by some pack of which nothing is known."""


def unknown_format() -> tuple[object, str]:
    """A MODEL with one weight of that class, and its key."""
    model = models.sd15().model
    key = next(key for key in host.layer_names(model) if key.endswith("attn1.to_q.weight"))
    layer = model.model.get_submodule(key.removesuffix(".weight"))
    packed = layer.weight.to(torch.int8).as_subclass(Unknown)
    packed._is_param = True
    layer._parameters["weight"] = packed
    return model, key


def test_a_lora_on_weights_that_take_none_is_refused_in_words():
    model, key = unknown_format()
    patched = host.with_lora(model, None, lora_for(model, key), 1.0)[0]
    with pytest.raises(InputError, match="stored as Unknown, to which no LoRA can be added here, and one is on it"):
        host.twin_of(patched, torch.float32)


def test_weights_that_cannot_be_read_are_refused_in_words():
    model, key = unknown_format()
    twin = host.twin_of(model, torch.float32)
    with pytest.raises(InputError, match="stored as Unknown, which this adapter would have to read: choose another"):
        dense_weight(twin.get_submodule(key.removesuffix(".weight")))


class FourBit(nn.Module):
    """A layer as bitsandbytes' loaders make them: it does not know its size."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        self.weight.quant_state = SimpleNamespace(shape=weight.shape)  # pyright: ignore[reportAttributeAccessIssue]
        self.quant_type, self.bias = "nf4", None


def test_nf4_is_refused_by_name():
    model = models.flux().model
    names = host.layer_names(model)
    block = model.model.diffusion_model.double_blocks[0]
    block.img_attn.qkv = FourBit(block.img_attn.qkv.weight)
    with pytest.raises(InputError, match=r"model is in NF4 \(bitsandbytes, 4 bit\), which cannot be trained on: load"):
        host.check_formats(model)
    assert host.layer_names(model) == names  # its LoRAs can be saved and merged all the same
    host.check_formats(models.flux().model)
