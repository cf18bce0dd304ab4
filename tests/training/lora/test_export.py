"""The saved LoRA: what the host's own loader makes of it, its other forms, and a file that is whole or not there."""

import errno
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import comfy.lora
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters import LoRA, adapter_from_tensors
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.lora.export import AS_TRAINED, as_format, in_precision, knows_layers, lora_tensors, notes_about
from lora_kiln.training.lora.lora import DTYPES, LoRAModel
from lora_kiln.training.lora.save import check_name, save_lora
from safetensors import safe_open
from safetensors.torch import load_file

from disk import files_of_at_most
from loras import random_adapters, random_lora
from models import sd3, sd15, sdxl
from windows_files import WindowsFiles

RANK, ALPHA = 4, 2.0
TENSORS = {"a.lora_up.weight": torch.arange(6.0).reshape(2, 3)}
TOLERANCE = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2}


@pytest.fixture(scope="module", params=[sd15, sdxl], ids=["sd15", "sdxl"])
def small(request: pytest.FixtureRequest):
    return request.param()


def trained(small, precision: str = "fp32"):
    """Adapters with random factors on all layers of a host model, and their state dict."""
    names = host.layer_names(small.model, small.clip)
    adapters = random_adapters(names, RANK, ALPHA)
    return adapters, lora_tensors(adapters, names, precision)


@pytest.mark.parametrize("precision", DTYPES)
def test_the_hosts_patched_weight_is_the_merged_weight(small, precision: str) -> None:
    adapters, tensors = trained(small, precision)
    model, clip = host.with_lora(small.model, small.clip, tensors, 1.0)
    patches = {**model.patches, **clip.patcher.patches}
    assert patches.keys() == adapters.keys()
    for key, adapter in list(adapters.items())[::5]:
        expected = adapter.difference().detach()
        patched = comfy.lora.calculate_weight(patches[key], torch.zeros(expected.shape), key)
        torch.testing.assert_close(patched, expected, atol=TOLERANCE[precision] * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("precision", "dtype"), DTYPES.items())
def test_tensors_have_the_asked_number_format_and_alpha_is_exact(small, precision: str, dtype: torch.dtype) -> None:
    tensors = trained(small, precision)[1]
    assert {tensor.dtype for key, tensor in tensors.items() if not key.endswith("alpha")} == {dtype}
    assert {tensor.dtype for key, tensor in tensors.items() if key.endswith("alpha")} == {torch.float32}
    assert {tensor.item() for key, tensor in tensors.items() if key.endswith("alpha")} == {ALPHA}


def test_the_state_dict_does_not_go_on_learning(small) -> None:
    adapters, tensors = trained(small)
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    for adapter in adapters.values():
        adapter.down.data.add_(1.0)
    assert all(torch.equal(tensor, before[key]) and not tensor.requires_grad for key, tensor in tensors.items())


def test_what_fp16_cannot_hold_stays_as_it_is_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    names = {"k": host.LayerNames("lora_unet_a", "diffusion_model.a", (), (2, 2))}
    adapters = {"k": LoRA(torch.ones(1, 2), torch.full((2, 1), 1e6), 1.0)}
    with caplog.at_level(logging.INFO):
        tensors = lora_tensors(adapters, names, "fp16")
    assert tensors["lora_unet_a.lora_up.weight"].dtype == torch.float32
    assert tensors["lora_unet_a.lora_up.weight"].max() == 1e6
    assert tensors["lora_unet_a.lora_down.weight"].dtype == torch.float16
    assert "too large for fp16" in caplog.text


# ---------------------------------------------------------------- other forms


@pytest.mark.parametrize("form", ["comfyui", "kohya"])
def test_the_hosts_form_and_kohyas_hold_the_same_numbers(small, form: str) -> None:
    lora = random_lora(small)
    other = as_format(as_format(lora, "comfyui"), form)
    starts = {"comfyui": ("diffusion_model.", "text_encoders."), "kohya": ("lora_unet_", "lora_te")}[form]
    assert all(key.startswith(starts) for key in other)
    assert sorted(t.sum().item() for t in other.values()) == sorted(t.sum().item() for t in lora.values())


def test_diffusers_form_needs_no_alpha(small) -> None:
    lora = random_lora(small, rank=4, alpha=3.0)
    form = as_format(lora, "diffusers")
    assert not any(key.endswith("alpha") for key in form)
    block = "unet.mid_block.attentions.0"
    for key, prefix in (
        ("middle_block.1.proj_in", f"{block}.proj_in.lora"),
        (
            "middle_block.1.transformer_blocks.0.attn1.to_out.0",
            f"{block}.transformer_blocks.0.attn1.processor.to_out_lora",
        ),
    ):
        kohya = lora_names(small, f"diffusion_model.{key}.weight").kohya
        torch.testing.assert_close(form[f"{prefix}.up.weight"], lora[f"{kohya}.lora_up.weight"] * 0.75)
        assert torch.equal(form[f"{prefix}.down.weight"], lora[f"{kohya}.lora_down.weight"])


def lora_names(small, key: str):
    return host.layer_names(small.model, small.clip)[key]


def test_fused_layers_are_split_by_rows() -> None:
    lora = random_lora(sd3(), alpha=4.0)
    form = as_format(lora, "diffusers")
    down, up = (lora[f"lora_unet_joint_blocks_1_x_block_attn_qkv.lora_{part}.weight"] for part in ("down", "up"))
    for number, part in enumerate(("to_q", "to_k", "to_v")):
        path = f"transformer.transformer_blocks.1.attn.{part}"
        assert torch.equal(form[f"{path}.lora_A.weight"], down)
        assert torch.equal(form[f"{path}.lora_B.weight"], up[128 * number : 128 * (number + 1)])


@pytest.mark.parametrize("form", ["kohya", "comfyui", "diffusers"])
@pytest.mark.parametrize("precision", DTYPES)
def test_every_form_can_have_every_number_format(form: str, precision: str) -> None:
    other = as_format(random_lora(sd15(), "bf16"), form, precision=precision)
    assert {t.dtype for key, t in other.items() if not key.endswith("alpha")} == {DTYPES[precision]}


@pytest.mark.parametrize("form", ["kohya", "comfyui", "diffusers"])
def test_numbers_stay_as_trained(form: str) -> None:
    other = as_format(random_lora(sd15(), "bf16"), form)
    assert {t.dtype for key, t in other.items() if not key.endswith("alpha")} == {torch.bfloat16}


def large(precision: str | None = None, dtype: torch.dtype = torch.float32) -> LoRAModel:
    """A LoRA whose scaled values fp16 cannot hold."""
    layer = host.LayerNames("lora_unet_a", "diffusion_model.a", (("transformer.a", 0, 2),), (2, 2))
    tensors = {"lora_unet_a.lora_up.weight": torch.full((2, 1), 6e4), "lora_unet_a.lora_down.weight": torch.ones(1, 2)}
    tensors = {key: tensor.to(dtype) for key, tensor in tensors.items()} | {"lora_unet_a.alpha": torch.tensor(4.0)}
    return LoRAModel(tensors, {}, "a", {"lora_unet_a": layer}, precision)


def test_a_chosen_number_format_that_cannot_hold_the_values_is_refused() -> None:
    lora = {"lora_unet_a.lora_up.weight": torch.full((2, 1), 1e6), "lora_unet_a.lora_down.weight": torch.ones(1, 2)}
    with pytest.raises(InputError, match="precision is fp16.*lora_unet_a.lora_up.weight.*bf16 or fp32"):
        as_format(lora, "kohya", precision="fp16")
    assert in_precision(lora, "bf16")["lora_unet_a.lora_up.weight"].isfinite().all()
    with pytest.raises(InputError, match="precision is fp16.*transformer.a.lora_B"):
        as_format(large("bf16"), "diffusers", precision="fp16")


@pytest.mark.parametrize("lora", [large(dtype=torch.float16), large("fp16")], ids=["its tensors", "its precision"])
def test_a_scale_that_leads_out_of_fp16_keeps_what_was_trained(lora: LoRAModel, caplog) -> None:
    with caplog.at_level(logging.INFO):
        form = as_format(lora, "diffusers")
    second = form["transformer.a.lora_B.weight"]
    assert second.dtype == torch.float32 and second.max() == 4 * 6e4
    assert form["transformer.a.lora_A.weight"].dtype == torch.float16
    assert "too large for fp16" in caplog.text and "transformer.a.lora_B" in caplog.text


# ---------------------------------------------------------------- the number format that was trained


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("form", ["kohya", "comfyui", "diffusers"])
def test_as_trained_is_the_recipes_number_format(form: str, precision: str) -> None:
    lora = random_lora(sd15())
    lora.precision = precision
    for made in (as_format(lora, form), as_format(as_format(lora, "comfyui"), form)):
        assert {t.dtype for key, t in made.items() if not key.endswith("alpha")} == {DTYPES[precision]}
        assert made.precision == precision
    assert {t.dtype for t in lora.values()} == {torch.float32}


def test_a_chosen_number_format_is_the_loras_own_from_then_on() -> None:
    lora = random_lora(sd15())
    lora.precision = "fp16"
    chosen = in_precision(lora, "bf16")
    assert chosen.precision == "bf16"
    assert in_precision(chosen, AS_TRAINED)[f"{NAME}.lora_up.weight"].dtype == torch.bfloat16


def test_without_a_number_format_of_its_own_numbers_stay_as_they_are() -> None:
    lora = LoRAModel({"a.lora_up.weight": torch.ones(2, 1).half(), "a.lora_down.weight": torch.ones(1, 2)}, {}, "a")
    made = in_precision(lora, AS_TRAINED)
    assert [tensor.dtype for tensor in made.values()] == [torch.float16, torch.float32] and made.precision is None


NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
KINDS = {
    "dora": {"lora_up.weight": (32, 2), "lora_down.weight": (2, 32), "dora_scale": (1, 32)},
    "loha": {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)},
    "lokr": {"lokr_w1": (4, 4), "lokr_w2": (8, 8)},
    "oft": {"oft_blocks": (4, 8, 8)},
}


def of_kind(kind: str) -> LoRAModel:
    """A LoRA of one layer, as Train LoRA gives it."""
    generator = torch.Generator().manual_seed(0)
    layer = lora_names(sd15(), KEY)
    adapter = adapter_from_tensors({e: torch.randn(shape, generator=generator) for e, shape in KINDS[kind].items()})
    assert adapter is not None and adapter.kind == kind
    return LoRAModel(lora_tensors({KEY: adapter}, {KEY: layer}, "fp32"), {}, kind, {NAME: layer})


@pytest.mark.parametrize("kind", KINDS)
def test_the_peft_form_refuses_what_it_cannot_hold(kind: str) -> None:
    with pytest.raises(InputError, match="format is diffusers.*plain LoRA.*attn1_to_q.*choose kohya or comfyui"):
        as_format(of_kind(kind), "diffusers")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_kohyas_and_the_hosts_form(kind: str) -> None:
    small, lora = sd15(), of_kind(kind)
    comfyui = as_format(lora, "comfyui")
    assert set(as_format(comfyui, "kohya")) == set(lora)
    weight = small.model.model.state_dict()[KEY].clone()
    one, other = (
        comfy.lora.calculate_weight(host.with_lora(small.model, None, each, 1.0)[0].patches[KEY], weight.clone(), KEY)
        for each in (lora, comfyui)
    )
    assert torch.equal(one, other) and not torch.equal(one, weight)


def test_a_layer_that_diffusers_lacks_is_said() -> None:
    layer = host.LayerNames("lora_unet_a", "diffusion_model.a", (), (2, 2))
    lora = {"lora_unet_a.lora_up.weight": torch.ones(2, 1), "lora_unet_a.lora_down.weight": torch.ones(1, 2)}
    with pytest.raises(InputError, match="no name for lora_unet_a"):
        as_format(LoRAModel(lora, {}, "a", {"lora_unet_a": layer}), "diffusers")


def test_a_lora_that_does_not_know_its_layers_needs_the_model(small) -> None:
    lora = dict(random_lora(small))
    assert knows_layers(lora, "kohya") and not knows_layers(lora, "diffusers")
    with pytest.raises(InputError, match="connect the model"):
        as_format(lora, "diffusers")
    names = host.layer_names(small.model, small.clip)
    assert as_format(lora, "diffusers", names).keys() == as_format(random_lora(small), "diffusers").keys()


def test_layers_of_the_text_encoder_need_the_clip(small) -> None:
    with pytest.raises(InputError, match="lora_te.*and clip"):
        as_format(dict(random_lora(small)), "diffusers", host.layer_names(small.model))


@pytest.mark.parametrize(("form", "precision", "field"), [("onnx", "fp16", "format"), ("kohya", "fp8", "precision")])
def test_a_form_nobody_knows_is_refused(form: str, precision: str, field: str) -> None:
    with pytest.raises(InputError, match=f"{field} is"):
        as_format(random_lora(sd15()), form, precision=precision)


def test_the_metadata_follows_the_form() -> None:
    lora = random_lora(sdxl())
    code = "https://github.com/Stability-AI/generative-models"
    architecture = "stable-diffusion-xl-v1-base/lora"
    lora.metadata = {"modelspec.architecture": architecture, "modelspec.implementation": code, "ss_seed": "7"}
    assert as_format(lora, "kohya").metadata == lora.metadata
    assert as_format(lora, "diffusers").metadata["modelspec.implementation"] == "diffusers"
    assert as_format(lora, "comfyui").metadata["ss_seed"] == lora.metadata["ss_seed"]


def test_diffusers_own_settings_do_not_outlive_its_keys() -> None:
    lora = as_format(random_lora(sd15()), "diffusers")
    lora.metadata = {"lora_adapter_metadata": "{}"}
    assert "lora_adapter_metadata" in as_format(lora, "diffusers").metadata
    assert "lora_adapter_metadata" not in as_format(lora, "kohya").metadata


# ---------------------------------------------------------------- the file


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save_lora(tmp_path / "a.safetensors", TENSORS, {"ss_seed": "7"})
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys() and all(torch.equal(loaded[key], TENSORS[key]) for key in TENSORS)
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_seed"] == "7"


def test_tensors_that_are_views_can_be_saved(tmp_path: Path) -> None:
    view = torch.arange(12.0).reshape(3, 4).t()
    assert torch.equal(load_file(save_lora(tmp_path / "a.safetensors", {"a": view}, {}))["a"], view)


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    paths = [save_lora(tmp_path / "a.safetensors", {"a": torch.tensor([float(n)])}, {}) for n in range(3)]
    assert [path.name for path in paths] == ["a.safetensors", "a_2.safetensors", "a_3.safetensors"]
    assert [load_file(path)["a"].item() for path in paths] == [0.0, 1.0, 2.0]


def test_servers_that_save_under_one_name_at_once_lose_nothing(tmp_path: Path) -> None:
    """Several ComfyUIs may share a folder of LoRAs."""

    def save(number: int) -> Path:
        return save_lora(tmp_path / "a.safetensors", {"a": torch.full((10_000,), float(number))}, {})

    with ThreadPoolExecutor(8) as servers:
        paths = list(servers.map(save, range(24)))
    assert sorted(paths) == sorted(tmp_path.iterdir())
    assert [load_file(path)["a"].unique().tolist() for path in paths] == [[float(number)] for number in range(24)]


def test_folders_are_made(tmp_path: Path) -> None:
    assert save_lora(tmp_path / "people" / "anna.safetensors", TENSORS, {}).exists()


def test_a_file_in_the_way_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "people").write_text("a file")
    with pytest.raises(InputError, match="could not be written"):
        save_lora(tmp_path / "people" / "anna.safetensors", TENSORS, {})


def test_a_name_too_long_for_the_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"):
        save_lora(tmp_path / f"{'a' * 300}.safetensors", TENSORS, {})


def test_a_disk_that_is_full_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"), files_of_at_most(2000):
        save_lora(tmp_path / "a.safetensors", {"a": torch.zeros(10_000)}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_an_antivirus_looks_at_is_saved_all_the_same(
    has_links: bool, tmp_path: Path, windows_files: WindowsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not has_links:  # as on exFAT
        monkeypatch.setattr(os, "link", refused)
    windows_files.hold("*", times=3)
    path = save_lora(tmp_path / "a.safetensors", TENSORS, {})
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()


def test_nothing_half_written_is_left_behind(tmp_path: Path) -> None:
    save_lora(tmp_path / "a.safetensors", TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("anna", "anna"),
        (" anna ", "anna"),
        ("people/anna", "people/anna"),
        ("anna.safetensors", "anna"),
        ("anna v1.5", "anna v1.5"),
        ("猫", "猫"),
    ],
)
def test_a_good_name_is_taken(name: str, cleaned: str) -> None:
    assert check_name(name, "name", "Node") == cleaned


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "/", "/etc/x", "..", "../x", "a/../x", "a/../../x", "./x", "a//b", "a/", ".safetensors", "a\\b",
        "C:x", "a*", "a?", 'a"', "a<b", "a|b", "a\0b", "a\nb", "a/ .. /x", " .. / .. /x", "a/ . /x",
    ],
)  # fmt: skip
def test_a_name_that_leaves_its_root_or_suits_no_file_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="name is"):
        check_name(name, "name", "Node")


# ---------------------------------------------------------------- what is no adapter's


def test_an_embedding_in_the_file_stays_or_is_named() -> None:
    """As OneTrainer bundles it; diffusers refuses files that hold more than adapters."""
    key, embedding = "bundle_emb.anna.clip_l", torch.ones(2, 32)
    plain = random_lora(sd15(), wanted=lambda layer, shape: layer == KEY)
    for source in ("kohya", "comfyui", "diffusers"):
        lora = as_format(plain, source)
        lora[key] = embedding
        for form in ("kohya", "comfyui", "diffusers"):
            made, stays = as_format(lora, form), form != "diffusers"
            assert made.keys() == {*as_format(plain, form), *([key] if stays else [])}
            assert not stays or torch.equal(made[key], embedding)
            (note,) = notes_about(lora, made)
            assert key in note and ("Left out" in note) != stays


def test_a_form_that_the_host_cannot_read_says_so() -> None:
    """diffusers' own files of UNets: without the model their keys stay as they are."""
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = {f"{path}.lora_A.weight": torch.ones(2, 32), f"{path}.lora_B.weight": torch.ones(32, 2)}
    same = as_format(lora, "diffusers")
    assert same.keys() == lora.keys() and "ComfyUI's own LoRA loader does not read" in notes_about(lora, same)[0]
    readable = as_format(lora, "diffusers", host.layer_names(sd15().model))
    assert all("processor.to_q_lora" in key for key in readable) and not notes_about(lora, readable)
