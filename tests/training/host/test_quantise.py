"""Weights in fewer bits: how far they are from what they were, that they stay so, that gradients pass them right."""

from __future__ import annotations

import json
from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from lora_kiln.training import host
from lora_kiln.training.basics.determinism import deterministic_kernels
from lora_kiln.training.config import ADAPTERS
from lora_kiln.training.host.blocks import repeated_blocks
from lora_kiln.training.host.quantise import dense, is_host_linear, is_quantised, to_fp8

import models
from gradients import FAMILIES, Probe, all_equal, distance
from host import has_cuda

FORMATS = [
    *("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8"),
    pytest.param("int8_tensorwise", marks=pytest.mark.host("0.27.0")),
]


@pytest.fixture(autouse=True)
def training(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with host.training_mode(), deterministic_kernels(True):
        yield


def rows(seed: int = 0) -> torch.Tensor:
    """Weights whose rows differ in size by many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-12, 8, 40)[:, None]
    return sizes * torch.randn(40, 64, generator=generator)


# ---------------------------------------------------------------- the format


def test_the_error_is_within_the_bound_of_the_format():
    weight = rows()
    quantised = to_fp8(weight, torch.float32)
    scale = quantised._params.scale
    error = (quantised.dequantize() - weight).abs()
    assert (error <= torch.maximum(weight.abs() / 16, scale / 1024)).all()
    largest = weight.abs().amax(1, keepdim=True) / scale
    assert ((largest > 224) & (largest <= 448)).all()
    assert torch.equal(torch.exp2(torch.log2(scale).round()), scale)


def test_the_largest_number_of_the_format_and_rows_of_nothing_are_exact():
    weight = torch.stack([torch.full((8,), 448.0), torch.full((8,), 449.0), torch.zeros(8), torch.full((8,), 2.0**-9)])
    made = to_fp8(weight, torch.float32).dequantize()
    assert torch.equal(made[[0, 2, 3]], weight[[0, 2, 3]])
    assert made[1].tolist() == [448.0] * 8


def test_dense_weights_are_the_same_in_bf16_and_float32():
    quantised = to_fp8(rows(), torch.bfloat16)
    assert quantised.dtype == quantised.dequantize().dtype == torch.bfloat16
    assert torch.equal(quantised.dequantize().float(), to_fp8(rows(), torch.float32).dequantize())


def test_dense_weights_in_fp16_are_those_of_float32_as_far_as_it_holds_them():
    weight = rows()
    weight = weight[weight.abs().amax(1) < 6e4]
    exact = to_fp8(weight, torch.float32).dequantize().half()
    assert (to_fp8(weight, torch.float32)._params.scale < 2.0**-25).any(), "fp16 has no such scales"
    assert torch.equal(to_fp8(weight, torch.float16).dequantize(), exact)


def test_rows_keep_what_one_scale_for_all_would_lose():
    weight = rows()[10:30]
    ours = to_fp8(weight, torch.float32).dequantize()
    theirs = QuantizedTensor.from_float(weight, "TensorCoreFP8E4M3Layout", scale="recalculate").dequantize()
    error = [((each - weight).norm(dim=1) / weight.norm(dim=1)).max().item() for each in (ours, theirs)]
    assert error[0] < 0.04 and error[1] > 0.5


# ---------------------------------------------------------------- base_precision fp8


def linears(twin: Any) -> list[Any]:
    """The linear layers of the repeated blocks."""
    return [layer for _, block in repeated_blocks(twin) for layer in block.modules() if is_host_linear(layer)]


def dense_twin(small: models.Small, twin: Any) -> Any:
    """A twin with plain weights that are those of a quantised one."""
    plain: Any = host.trainable_twin(small.model, torch.float32)
    for layer, other in zip(twin.modules(), plain.modules(), strict=True):
        if is_host_linear(layer) and is_quantised(layer.weight):
            other.weight = torch.nn.Parameter(dense(layer.weight, torch.float32), requires_grad=False)
            vars(other).pop("forward", None)
            other.layout_type = None  # by which the host rounds the layer's input on a GPU
    return plain


@pytest.mark.parametrize("name", FAMILIES)
def test_the_blocks_linear_weights_take_half_the_bytes_of_bf16(name):
    small = FAMILIES[name][0]()
    fp8 = host.trainable_twin(small.model, torch.bfloat16, "fp8")
    plain = host.trainable_twin(small.model, torch.bfloat16)
    assert linears(fp8)
    for ours, theirs in zip(linears(fp8), linears(plain), strict=True):
        assert ours.weight.nbytes * 2 == theirs.weight.nbytes
        assert ours.weight.dtype == torch.bfloat16 and ours.weight._qdata.dtype == torch.float8_e4m3fn
        assert ours.weight._params.scale.shape == (ours.out_features, 1)
    everywhere = {id(layer.weight) for layer in linears(fp8)}
    rest = [parameter for parameter in fp8.parameters() if id(parameter) not in everywhere]
    assert rest and not any(map(is_quantised, rest))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_gradients_are_those_of_the_dense_weights(name, kind):
    make, sigma = FAMILIES[name]
    small = make()
    twin = host.trainable_twin(small.model, torch.float32, "fp8")
    plain = dense_twin(small, twin)
    ours, theirs = Probe(small, sigma, twin, kind), Probe(small, sigma, plain, kind)
    assert distance(ours.gradients(), theirs.gradients()) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_fp8_is_streamed_and_checkpointed_to_the_same_bits(name, kind):
    make, sigma = FAMILIES[name]
    small = make()
    resident = host.trainable_twin(small.model, torch.float32, "fp8")
    host.checkpoint_blocks(resident)
    streamed = host.trainable_twin(small.model, torch.float32, "fp8", in_ram=True)
    facts = host.stream_blocks(streamed, 0)
    plain = host.stream_blocks(host.trainable_twin(small.model, torch.float32, in_ram=True), 0)
    assert facts.streamed_bytes < (0.6 if name in ("flux", "sd3") else 1.0) * plain.streamed_bytes
    expected = Probe(small, sigma, resident, kind).gradients()
    probe = Probe(small, sigma, streamed, kind)
    is_summed_alike = kind == "lora" or not has_cuda()  # a GPU sums DoRA's norms by where a weight lies
    for _ in range(2):
        found = probe.gradients()
        assert all_equal(found, expected) if is_summed_alike else distance(found, expected) < 1e-5


def test_a_patch_is_in_the_weight_before_it_is_quantised():
    small = models.sd15()
    key = next(key for key in host.layer_names(small.model) if key.endswith("attn1.to_q.weight"))
    weight = small.model.model.state_dict()[key]
    small.model.add_patches({key: ("diff", (torch.ones_like(weight),))}, 0.5)
    for in_ram in (False, True):
        twin = host.trainable_twin(small.model, torch.float32, "fp8", in_ram=in_ram)
        own = twin.get_submodule(key.removesuffix(".weight")).weight
        assert torch.allclose(own.dequantize().cpu(), weight.cpu() + 0.5, rtol=1 / 16)


def test_fp8_leaves_the_model_as_it_was():
    small = models.sdxl()
    before = models.state(small)
    twin = host.trainable_twin(small.model, torch.float32, "fp8")
    Probe(small, 3.0, twin).gradients()
    after = models.state(small)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert models.hooks(small.model.model) == 0


# ---------------------------------------------------------------- the host's own quantised checkpoints


def quantised_flux(form: str, full_precision: bool) -> models.Small:
    """Flux as the host loads it from a file whose blocks' linear layers are quantised, with `comfy_quant` beside."""
    small = models.flux()
    plain = small.model.model.diffusion_model.state_dict()
    layout = comfy.ops.QUANT_ALGOS[form]["comfy_tensor_layout"]
    linear = {name for name, module in small.model.model.diffusion_model.named_modules() if is_host_linear(module)}
    stored: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for key, tensor in plain.items():
            layer = key.removesuffix(".weight")
            if "blocks" in key and layer in linear and key.endswith(".weight"):
                options = {"scale": "recalculate"} if form in ("float8_e4m3fn", "float8_e5m2", "nvfp4") else {}
                stored |= QuantizedTensor.from_float(tensor.clone(), layout, **options).state_dict(key)
                conf = json.dumps({"format": form, "full_precision_matrix_mult": full_precision})
                stored[f"{layer}.comfy_quant"] = torch.tensor(list(conf.encode()), dtype=torch.uint8)
            else:
                stored[key] = tensor.clone()
        config = comfy.supported_models.Flux({**models.FLUX, "image_model": "flux", "guidance_embed": True})
        config.unet_config["dtype"] = torch.float32
        config.set_inference_dtype(torch.float32, torch.float32)
        config.quant_config = {"mixed_ops": True}
        model = config.get_model({}, "", device="cpu")
        missing, unexpected = model.diffusion_model.load_state_dict(stored, strict=False)
        assert not missing and not unexpected
        device = host.training_device(small.model)
        patcher = comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))
    return models.Small(patcher, small.clip, small.vae)


def is_one_of(tensor: torch.Tensor, weights: list[torch.Tensor]) -> bool:
    """Whether it is one of the weights, or one transposed."""
    sides = [side for weight in weights for side in (weight, weight.t()) if side.shape == tensor.shape]
    return any(torch.equal(tensor, side) for side in sides)


def stored(layer: Any) -> torch.Tensor:
    """The bytes of a quantised weight: older PyTorch compares no 8-bit floats."""
    return layer.weight._qdata.view(torch.uint8)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("full_precision", [False, True])
def test_a_quantised_checkpoint_is_trained_as_it_is(form, full_precision):
    small = quantised_flux(form, full_precision)
    before = [stored(layer).clone() for layer in linears(small.model.model)]
    twin = host.trainable_twin(small.model, torch.float32)
    assert all(isinstance(layer.weight, QuantizedTensor) for layer in linears(twin))
    plain = dense_twin(small, twin)
    expected = Probe(small, 0.6, plain).gradients()
    probe = Probe(small, 0.6, twin)
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        ours = probe.gradients()
    assert distance(ours, expected) < 1e-5
    weights = [dense(layer.weight, torch.float32) for layer in linears(twin)]
    assert kept and not any(is_one_of(each, weights) for each in kept if not is_quantised(each))
    streamed = host.trainable_twin(small.model, torch.float32, in_ram=True)
    host.stream_blocks(streamed, 0)
    assert distance(Probe(small, 0.6, streamed).gradients(), expected) < 1e-5
    assert all(map(torch.equal, before, (stored(layer) for layer in linears(small.model.model))))


def test_a_quantised_checkpoint_with_a_lora_on_stays_quantised():
    small = quantised_flux("float8_e4m3fn", False)
    key = "diffusion_model.double_blocks.0.img_attn.proj.weight"
    small.model.add_patches({key: ("diff", (torch.ones(64, 64),))}, 0.5)
    before = small.model.model.diffusion_model.double_blocks[0].img_attn.proj.weight
    twin = host.trainable_twin(small.model, torch.float32)
    own = twin.diffusion_model.double_blocks[0].img_attn.proj.weight
    assert isinstance(own, QuantizedTensor)
    assert torch.allclose(own.dequantize().cpu(), before.dequantize().cpu() + 0.5, atol=0.1)


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_fp8_storage_is_trained_as_it_is(name):
    """As the host's loader stores a model with weight_dtype fp8_e4m3fn: every weight, and no scale."""
    make, sigma = FAMILIES[name]
    small = make()
    with torch.inference_mode():
        config = type(small.model.model.model_config)(dict(small.model.model.model_config.unet_config))
        config.unet_config.update(small.model.model.model_config.unet_config, dtype=torch.float8_e4m3fn)
        config.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
        model = config.get_model({}, "", device="cpu")
        model.diffusion_model.load_state_dict(small.model.model.diffusion_model.state_dict())
        device = host.training_device(small.model)
        stored = comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))
    small = models.Small(stored, small.clip, small.vae)
    twin = host.trainable_twin(small.model, torch.float32)
    weights = [layer.weight for layer in linears(twin)]
    assert {weight.dtype for weight in weights} == {torch.float8_e4m3fn}
    expected = Probe(small, sigma, dense_twin(small, twin)).gradients()
    assert distance(Probe(small, sigma, twin).gradients(), expected) < 1e-5
    streamed = host.trainable_twin(small.model, torch.float32, in_ram=True)
    host.stream_blocks(streamed, 0)
    assert distance(Probe(small, sigma, streamed).gradients(), expected) < 1e-5
