"""Merged LoRAs: the weighted sum of the differences, exactly or as near as a rank allows."""

from __future__ import annotations

import comfy.lora
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters import adapter_from_tensors
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.lora.keys import split_key
from lora_kiln.training.lora.lora import LoRAModel
from lora_kiln.training.lora.merge import Part, merge_loras
from torch import Tensor

import models
from device_without_float64 import DEVICE, WithoutFloat64

LINEAR, CONVOLUTION, TEXT = "lora_unet_a_to_q", "lora_unet_b_conv", "lora_te_text_model_encoder_layers_0_mlp_fc1"
SHAPES = {LINEAR: (24, 20), CONVOLUTION: (16, 12, 3, 3), TEXT: (32, 16)}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(layer: str, shape: tuple[int, ...], rank: int, seed: int, alpha: float | None = None) -> dict[str, Tensor]:
    """A LoRA's entries for one layer, in kohya's shapes."""
    entries = {
        f"{layer}.lora_down.weight": noise(rank, *shape[1:], seed=seed),
        f"{layer}.lora_up.weight": noise(shape[0], rank, *(1 for _ in shape[2:]), seed=seed + 1),
    }
    return entries | ({} if alpha is None else {f"{layer}.alpha": torch.tensor(alpha)})


def lora(rank: int, seed: int, alpha: float | None = None, name: str = "anna", layers=SHAPES) -> LoRAModel:
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(layers):
        tensors |= factors(layer, SHAPES[layer], rank, 100 * seed + number, alpha)
    metadata = {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha or rank), "ss_seed": "7"}
    return LoRAModel(tensors, metadata, name)


def loha(layer: str, rank: int, seed: int) -> LoRAModel:
    out, *inner = SHAPES[layer]
    width = torch.Size(inner).numel()
    tensors = {f"{layer}.alpha": torch.tensor(2.0)}
    for number, entry in enumerate(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")):
        shape = (out, rank) if entry.endswith("a") else (rank, width)
        tensors[f"{layer}.{entry}"] = noise(*shape, seed=seed + number)
    return LoRAModel(tensors, {}, "loha")


def lokr(layer: str, seed: int) -> LoRAModel:
    out, inner = SHAPES[layer]
    tensors = {"lokr_w1": noise(4, 4, seed=seed), "lokr_w2": noise(out // 4, inner // 4, seed=seed + 1)}
    return LoRAModel({f"{layer}.{entry}": tensor for entry, tensor in tensors.items()}, {}, "lokr")


def oft(layer: str) -> LoRAModel:
    tensors = {f"{layer}.oft_blocks": noise(4, 6, 6, seed=3), f"{layer}.alpha": torch.tensor(1.0)}
    return LoRAModel(tensors, {}, "turned")


def parts(*pairs: tuple[LoRAModel, float]) -> list[Part]:
    return [Part(lora, weight, f"lora_{number + 1}") for number, (lora, weight) in enumerate(pairs)]


def entries_of(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    places = {key: split_key(key) for key in tensors}
    return {place[1]: tensors[key] for key, place in places.items() if place and place[0] == layer}


def difference(tensors: dict[str, Tensor], layer: str) -> Tensor:
    """up @ down * alpha / rank, written out, in double precision; other kinds by their adapter."""
    entries = entries_of(tensors, layer)
    if "lora_up.weight" not in entries:
        adapter = adapter_from_tensors(entries)
        assert adapter is not None
        return adapter.difference().detach().double().flatten(1)
    down, up = entries["lora_down.weight"].double().flatten(1), entries["lora_up.weight"].double().flatten(1)
    return up @ down * (float(entries.get("alpha", down.shape[0])) / down.shape[0])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_exact_sum_is_the_weighted_sum_of_the_differences():
    first, second, third = lora(4, 1, alpha=2.0), lora(6, 2), lora(3, 3, alpha=9.0)
    merged = merge_loras(parts((first, 0.7), (second, -1.5), (third, 1.0)))
    for layer, shape in SHAPES.items():
        wanted = 0.7 * difference(first, layer) - 1.5 * difference(second, layer) + difference(third, layer)
        assert relative(difference(merged.lora, layer), wanted) < 1e-6
        entries = entries_of(merged.lora, layer)
        assert entries["lora_down.weight"].shape == (13, *shape[1:])
        assert entries["lora_up.weight"].shape == (shape[0], 13, *(1 for _ in shape[2:]))
        assert float(entries["alpha"]) == 13
    assert merged.error == 0.0 and merged.errors == {}


def test_a_layer_that_one_lora_alone_has_keeps_its_tensors():
    first, second = lora(4, 1, alpha=2.0, layers=[LINEAR]), lora(4, 2, layers=[TEXT])
    merged = merge_loras(parts((first, 1.0), (second, 0.5)))
    assert all(torch.equal(merged.lora[key], first[key]) for key in first)
    assert relative(difference(merged.lora, TEXT), 0.5 * difference(second, TEXT)) < 1e-6


@pytest.mark.parametrize("layer", SHAPES)
def test_the_error_of_a_lower_rank_is_the_tail_of_the_singular_values(layer: str):
    first, second = lora(8, 1, alpha=3.0), lora(6, 2)
    whole = difference(first, layer) + 0.5 * difference(second, layer)
    singular = torch.linalg.svdvals(whole)
    tail = float(singular[5:].norm() / singular.norm())
    merged = merge_loras(parts((first, 1.0), (second, 0.5)), rank=5)
    assert entries_of(merged.lora, layer)["lora_down.weight"].shape == (5, *SHAPES[layer][1:])
    assert merged.errors[layer] == pytest.approx(tail, rel=1e-4)
    assert relative(difference(merged.lora, layer), whole) == pytest.approx(tail, rel=1e-4)


def test_the_error_in_all_is_that_of_all_layers_together():
    one = lora(8, 1)
    merged = merge_loras(parts((one, 1.0)), rank=3)
    lost = sum(float((difference(merged.lora, layer) - difference(one, layer)).square().sum()) for layer in SHAPES)
    whole = sum(float(difference(one, layer).square().sum()) for layer in SHAPES)
    assert merged.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)
    assert f"{merged.error:.2%}" in merged.report


def test_no_other_lora_of_that_rank_is_nearer():
    """Eckart and Young, 1936: against random row spaces, each with its best up, and against leaving ranks out."""
    one = lora(8, 1)
    whole = difference(one, LINEAR)
    best = relative(difference(merge_loras(parts((one, 1.0)), rank=4).lora, LINEAR), whole)
    for seed in range(20):
        down = noise(4, whole.shape[1], seed=seed).double()
        assert best <= relative(whole @ torch.linalg.pinv(down) @ down, whole)
    entries = entries_of(one, LINEAR)
    left = entries["lora_up.weight"].double()[:, :4] @ entries["lora_down.weight"].double()[:4]
    assert best <= relative(left, whole)


def test_a_rank_above_the_sums_changes_nothing():
    one = lora(4, 1)
    merged = merge_loras(parts((one, 2.0)), rank=64)
    assert relative(difference(merged.lora, LINEAR), 2 * difference(one, LINEAR)) < 1e-6
    assert merged.lora[f"{LINEAR}.lora_down.weight"].shape[0] == 4
    assert "nothing was lost" in merged.report


@pytest.mark.parametrize("make", [lambda: loha(LINEAR, 2, 5), lambda: lokr(LINEAR, 5)])
def test_loha_and_lokr_are_added_through_their_whole_difference(make):
    one, other = lora(2, 1, layers=[LINEAR]), make()
    wanted = difference(one, LINEAR) + 0.3 * difference(other, LINEAR)
    exact = merge_loras(parts((one, 1.0), (other, 0.3)))
    assert relative(difference(exact.lora, LINEAR), wanted) < 1e-5
    assert exact.lora[f"{LINEAR}.lora_down.weight"].shape[0] <= min(SHAPES[LINEAR])
    lower = merge_loras(parts((one, 1.0), (other, 0.3)), rank=3)
    singular = torch.linalg.svdvals(wanted)
    assert lower.errors[LINEAR] == pytest.approx(float(singular[3:].norm() / singular.norm()), rel=1e-4)


@pytest.mark.parametrize("make", [lambda: lora(2, 2, layers=[LINEAR]), lambda: loha(LINEAR, 2, 5)])
def test_they_are_added_on_a_device_without_float64_and_factorisations(make):
    wide = LoRAModel({key: each.double() for key, each in make().items()}, {}, "wide")
    with WithoutFloat64():  # its numbers are zeros, so only ranks and shapes tell
        lower = merge_loras(parts((lora(2, 1, layers=[LINEAR]), 1.0), (wide, 0.3)), rank=1, device=DEVICE)
    assert lower.lora[f"{LINEAR}.lora_up.weight"].shape == (SHAPES[LINEAR][0], 1)


def test_an_exact_loha_has_no_more_ranks_than_it_needs():
    merged = merge_loras(parts((loha(LINEAR, 2, 5), 0.5)))
    assert merged.lora[f"{LINEAR}.lora_down.weight"].shape[0] == 4


def test_dora_and_oft_are_refused_unless_they_stay_as_they_are():
    dora = lora(2, 1, layers=[LINEAR], name="dora")
    dora[f"{LINEAR}.dora_scale"] = torch.ones(1, SHAPES[LINEAR][1])
    turned, plain = oft(CONVOLUTION), lora(2, 2, layers=[TEXT])
    with pytest.raises(InputError, match="(?s)lora_1 .dora. is DoRA.*lora_2 .turned. is OFT"):
        merge_loras(parts((dora, 0.5), (turned, 0.5)))
    with pytest.raises(InputError, match="without the base model"):
        merge_loras(parts((dora, 1.0)), rank=1)
    with pytest.raises(InputError, match="is DoRA"):
        merge_loras(parts((dora, 1.0), (lora(2, 4, layers=[LINEAR]), 1.0)))
    kept = merge_loras(parts((dora, 1.0), (turned, 1.0), (plain, 0.5))).lora
    assert all(torch.equal(kept[key], tensor) for key, tensor in {**dora, **turned}.items())


def test_loras_for_different_models_are_refused():
    other = LoRAModel(factors(LINEAR, (24, 40), 4, 9), {}, "wide")
    with pytest.raises(InputError, match=f"{LINEAR} is 24 x 20 in lora_1 .anna. and 24 x 40 in lora_2 .wide."):
        merge_loras(parts((lora(4, 1), 1.0), (other, 1.0)))


def test_an_empty_lora_is_refused():
    with pytest.raises(InputError, match="Merge and Resize LoRAs.*(?s:.*)lora_2 .nothing. is empty"):
        merge_loras(parts((lora(2, 1), 1.0), (LoRAModel({}, {}, "nothing"), 1.0)))


def test_names_that_are_not_kohyas_need_the_model():
    stranger = LoRAModel(factors("diffusion_model.input_blocks.1.1.proj_in", (8, 8), 2, 1), {}, "core")
    with pytest.raises(InputError, match="lora_2 .core. does not name its layers as kohya does.*connect the model"):
        merge_loras(parts((lora(2, 1), 1.0), (stranger, 1.0)))


def test_biases_and_norms_add_up():
    first, second = lora(2, 1, layers=[LINEAR]), lora(2, 2, layers=[LINEAR])
    first |= {f"{LINEAR}.diff_b": torch.ones(24), "lora_unet_norm.diff": torch.ones(5)}
    second |= {f"{LINEAR}.diff_b": torch.ones(24), "lora_unet_norm.diff": torch.ones(5)}
    merged = merge_loras(parts((first, 1.0), (second, 0.5)))
    assert torch.equal(merged.lora[f"{LINEAR}.diff_b"], torch.full((24,), 1.5))
    assert torch.equal(merged.lora["lora_unet_norm.diff"], torch.full((5,), 1.5))
    assert (
        relative(difference(merged.lora, LINEAR), difference(first, LINEAR) + 0.5 * difference(second, LINEAR)) < 1e-6
    )


def test_the_metadata_is_the_firsts_and_true():
    first, second = lora(4, 1, alpha=2.0, name="anna"), lora(4, 2, name="style", layers=[LINEAR])
    first.metadata |= {
        "sshs_model_hash": "old",
        "workflow": "{}",
        "kiln_conv_rank": "8",
        "ss_network_args": '{"conv_dim": "8", "targets": "all"}',
    }
    merged = merge_loras(parts((first, 1.0), (second, 0.5)))
    metadata = merged.lora.metadata
    assert metadata["ss_seed"] == "7"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("Dynamic", "Dynamic")
    assert metadata["modelspec.merged_from"] == "anna, style"
    assert "1 x anna, 0.5 x style" in metadata["modelspec.description"]
    assert metadata["ss_network_args"] == '{"targets": "all"}'
    assert not {"sshs_model_hash", "workflow", "kiln_conv_rank"} & metadata.keys()
    assert all(isinstance(value, str) for value in metadata.values())
    resized = merge_loras(parts((first, 1.0)), rank=2).lora.metadata
    assert (resized["ss_network_dim"], resized["ss_network_alpha"]) == ("2", "2.0")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_number_format_is_the_parts(dtype: torch.dtype):
    first = LoRAModel({key: tensor.to(dtype) for key, tensor in lora(4, 1).items()}, {}, "half")
    merged = merge_loras(parts((first, 0.5)))
    assert {t.dtype for key, t in merged.lora.items() if not key.endswith("alpha")} == {dtype}


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("fp16", "fp16", "fp16"),
        ("fp16", "bf16", "fp32"),
        ("bf16", "fp32", "fp32"),
        ("fp16", None, "fp32"),  # whose tensors are float32
        (None, None, None),
    ],
)
def test_the_files_number_format_holds_every_part(first, second, together):
    one, other = lora(4, 1), lora(4, 2)
    one.precision, other.precision = first, second
    merged = merge_loras(parts((one, 0.5), (other, 1.0))).lora
    assert merged.precision == together
    assert {t.dtype for t in merged.values()} == {torch.float32}


def test_values_that_fp16_cannot_hold_stay_float32():
    first = LoRAModel({key: tensor.half() for key, tensor in lora(2, 1, layers=[LINEAR]).items()}, {}, "large")
    first[f"{LINEAR}.lora_up.weight"] = torch.full((24, 2), 6e4, dtype=torch.float16)
    merged = merge_loras(parts((first, 4.0)))
    assert merged.lora[f"{LINEAR}.lora_up.weight"].isfinite().all()
    assert relative(difference(merged.lora, LINEAR), 4 * difference(first, LINEAR)) < 1e-3


def random_lora(small: models.Small, rank: int, seed: int) -> LoRAModel:
    """Every layer of the model and its text encoders, biases and norms left out."""
    names = host.layer_names(small.model, small.clip)
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(names.values()):
        if len(layer.shape) > 1:
            tensors |= factors(layer.kohya, layer.shape, rank, 1000 * seed + 2 * number, alpha=rank / 2)
    return LoRAModel(tensors, {}, f"random {seed}", {layer.kohya: layer for layer in names.values()})


def applied(small: models.Small, lora: LoRAModel, strength: float) -> dict[str, Tensor]:
    """The weights that the host's own loader changes, as it changes them."""
    changed = {}
    model, clip = host.with_lora(small.model, small.clip, lora, strength)
    for patcher in (model, clip.patcher):
        weights = patcher.model.state_dict()
        for key, patches in patcher.patches.items():
            changed[key] = comfy.lora.calculate_weight(patches, weights[key].clone().float(), key)
    return changed


@pytest.mark.parametrize("make", [models.sd15, models.sdxl])
def test_the_host_applies_the_merged_lora_as_it_applies_both(make, caplog: pytest.LogCaptureFixture):
    small = make()
    first, second = random_lora(small, 3, 1), random_lora(small, 2, 2)
    merged = merge_loras(parts((first, 0.8), (second, -0.6))).lora
    with torch.inference_mode():
        one, two, both = applied(small, first, 0.8), applied(small, second, -0.6), applied(small, merged, 1.0)
        weights = {**small.model.model.state_dict(), **small.clip.patcher.model.state_dict()}
        assert both.keys() == one.keys() and len(both) == len(first) // 3
        for key, weight in both.items():
            assert torch.allclose(weight, one[key] + two[key] - weights[key], atol=1e-4, rtol=1e-4), key
    assert "not loaded" not in caplog.text


def test_loras_with_comfyui_and_kohya_names_meet_in_one_layer():
    small = models.sd15()
    first = random_lora(small, 2, 1)
    by_kohya = first.layers
    renamed = {}
    for key, tensor in random_lora(small, 2, 2).items():
        layer, entry = split_key(key) or ("", "")
        renamed[f"{by_kohya[layer].comfy}.{entry}"] = tensor
    merged = merge_loras(parts((first, 1.0), (LoRAModel(renamed, {}, "comfy"), 1.0)))
    assert merged.lora.keys() == first.keys()
    assert {t.shape[0] for key, t in merged.lora.items() if "lora_down" in key} == {4}


# ---------------------------------------------------------------- what strangers' files may hold


def test_differences_of_two_lengths_are_for_two_models() -> None:
    loras = [LoRAModel({f"{LINEAR}.diff_b": torch.ones(size)}, {}, f"of {size}") for size in (4, 8)]
    with pytest.raises(InputError, match=r"is \[4\] in one LoRA and \[8\] in another"):
        merge_loras([Part(each, 0.5, each.name) for each in loras], 0, (), torch.device("cpu"))


def test_a_lora_that_does_not_fit_the_model_is_refused() -> None:
    names = [host.LayerNames(CONVOLUTION, "diffusion_model.b.conv", (), (16, 7, 3, 3))]
    with pytest.raises(InputError, match=f"{CONVOLUTION} is 16 x 108, and not as the model has it"):
        merge_loras([Part(lora(2, 1, layers=[CONVOLUTION]), 0.5, "lora_1")], 0, names, torch.device("cpu"))


def test_numbers_of_8_bit_are_added_as_fp16() -> None:
    whole = lora(2, 1, layers=[LINEAR])
    small = LoRAModel({key: tensor.to(torch.float8_e4m3fn) for key, tensor in whole.items()}, {}, "small")
    merged = merge_loras([Part(small, 0.5, "lora_1")], 0, (), torch.device("cpu")).lora
    assert {tensor.dtype for tensor in merged.values() if tensor.dim()} == {torch.float16}


def test_a_lora_without_a_matrix_can_be_weighed() -> None:
    single = LoRAModel({f"{LINEAR}.diff_b": torch.tensor(2.0)}, {}, "one number")
    assert merge_loras([Part(single, 0.5, "lora_1")], 0, (), torch.device("cpu")).lora[f"{LINEAR}.diff_b"] == 1.0


# ---------------------------------------------------------------- what is no adapter's, and parts of layers


def test_embeddings_in_a_file_are_kept_and_named() -> None:
    """OneTrainer's; two of one name cannot be added, so the first stays and the other is named."""
    first, second = lora(2, 1, layers=[LINEAR]), lora(2, 2, layers=[LINEAR])
    first["bundle_emb.anna.clip_l"], second["bundle_emb.anna.clip_l"] = torch.ones(2, 8), torch.zeros(2, 8)
    second["bundle_emb.bert.clip_l"] = torch.zeros(1, 8)
    merged = merge_loras(parts((first, 1.0), (second, 0.5)))
    assert torch.equal(merged.lora["bundle_emb.anna.clip_l"], torch.ones(2, 8))
    assert torch.equal(merged.lora["bundle_emb.bert.clip_l"], torch.zeros(1, 8))
    assert "bundle_emb.anna.clip_l" in merged.report and "bundle_emb.bert.clip_l" in merged.report
    assert "Left out" in merged.report and "Left out" not in merge_loras(parts((first, 0.5))).report


def test_an_adapter_on_a_part_of_a_layer_is_added_to_the_same_part_of_another_spelling() -> None:
    """q of Z-Image's joined q, k and v, as LoKr, which cannot become one adapter of the whole."""
    model = models.z_image()
    names = host.layer_names(model)
    key = "diffusion_model.layers.0.attention.qkv.weight"
    width, generator = names[key].shape[1], torch.Generator().manual_seed(0)
    loras, expected = [], torch.zeros(names[key].shape)
    for prefix, weight in (("diffusion_model", 0.5), ("transformer", 2.0)):
        w1, w2 = torch.randn(4, 4, generator=generator), torch.randn(width // 4, width // 4, generator=generator)
        path = f"{prefix}.layers.0.attention.to_q"
        loras.append((LoRAModel({f"{path}.lokr_w1": w1, f"{path}.lokr_w2": w2}, {}, prefix), weight))
        expected[:width] += weight * torch.kron(w1, w2)
    merged = merge_loras(parts(*loras), names=names.values()).lora
    patched, _ = host.with_lora(model, None, merged, 1.0)
    change = comfy.lora.calculate_weight(patched.patches[key], torch.zeros(names[key].shape), key)
    torch.testing.assert_close(change, expected, atol=1e-3, rtol=1e-3)
    kept = merge_loras(parts((loras[0][0], 1.0)), names=names.values()).lora
    assert all(torch.equal(kept[name], tensor) for name, tensor in loras[0][0].items())
