"""The saved LoRA: what the host's own loader makes of it, and a file that is whole or not there."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.lora
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.adapters import lora_difference
from lora_kiln.training.attach import find_targets, make_adapters
from lora_kiln.training.config import TARGETS, LoRAConfig
from lora_kiln.training.export import DTYPES, LoRAModel, check_name, free_path, lora_metadata, lora_tensors, save_lora
from lora_kiln.training.problems import InputError
from safetensors import safe_open
from safetensors.torch import load_file

from models import sd15, sdxl

RANK, ALPHA = 4, 2.0
TENSORS = {"a.lora_up.weight": torch.arange(6.0).reshape(2, 3)}
TOLERANCE = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2}


@pytest.fixture(scope="module", params=[sd15, sdxl], ids=["sd15", "sdxl"])
def model(request: pytest.FixtureRequest):
    return request.param().model


def trained(model, targets: str = TARGETS[2], precision: str = "fp32"):
    """Adapters with random factors on a host model, and their state dict."""
    adapters = make_adapters(find_targets(model.model, targets), RANK, ALPHA / RANK, 0)
    generator = torch.Generator().manual_seed(0)
    for adapter in adapters.values():
        adapter.up.data = torch.randn(adapter.up.shape, generator=generator)
    return adapters, lora_tensors(adapters, host.kohya_names(model), ALPHA, precision)


@pytest.mark.parametrize("targets", TARGETS)
def test_the_host_loads_every_key(model, targets: str, caplog: pytest.LogCaptureFixture) -> None:
    adapters, tensors = trained(model, targets)
    with caplog.at_level(logging.WARNING):
        patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    assert "not loaded" not in caplog.text
    assert set(patches) == set(adapters)


@pytest.mark.parametrize("precision", DTYPES)
def test_the_hosts_patched_weight_is_the_merged_weight(model, precision: str) -> None:
    adapters, tensors = trained(model, precision=precision)
    patches = comfy.lora.load_lora(tensors, comfy.lora.model_lora_keys_unet(model.model, {}))
    for key, adapter in list(adapters.items())[::5]:
        expected = lora_difference(adapter.down, adapter.up, ALPHA / RANK).detach()
        weight = torch.zeros(expected.shape)
        patched = comfy.lora.calculate_weight([(1.0, patches[key], 1.0, None, None)], weight, key)
        torch.testing.assert_close(patched, expected, atol=TOLERANCE[precision] * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("precision", "dtype"), DTYPES.items())
def test_tensors_have_the_asked_number_format(model, precision: str, dtype: torch.dtype) -> None:
    tensors = trained(model, precision=precision)[1]
    assert {tensor.dtype for key, tensor in tensors.items() if not key.endswith("alpha")} == {dtype}


def test_alpha_is_saved_exactly(model) -> None:
    tensors = trained(model, precision="bf16")[1]
    assert {tensor.dtype for key, tensor in tensors.items() if key.endswith("alpha")} == {torch.float32}


def test_every_layer_has_down_up_and_alpha(model) -> None:
    adapters, tensors = trained(model)
    assert len(tensors) == 3 * len(adapters)
    assert {key.split(".", 1)[1] for key in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {tensor.item() for key, tensor in tensors.items() if key.endswith("alpha")} == {ALPHA}


def test_the_state_dict_does_not_go_on_learning(model) -> None:
    adapters, tensors = trained(model)
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    for adapter in adapters.values():
        adapter.down.data.add_(1.0)
    assert all(torch.equal(tensor, before[key]) and not tensor.requires_grad for key, tensor in tensors.items())


def test_sd15_keys_go_by_diffusers_names() -> None:
    keys = trained(sd15().model, "attention")[1]
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
    assert "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight" in keys


def test_sdxl_keys_go_by_the_original_names() -> None:
    keys = trained(sdxl().model, "attention")[1]
    assert "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys


# ---------------------------------------------------------------- the file


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    path = save_lora(tmp_path / "a.safetensors", TENSORS, {"ss_seed": "7"})
    loaded = load_file(path)
    assert loaded.keys() == TENSORS.keys() and all(torch.equal(loaded[key], TENSORS[key]) for key in TENSORS)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"ss_seed": "7"}


def test_tensors_that_are_views_can_be_saved(tmp_path: Path) -> None:
    view = torch.arange(12.0).reshape(3, 4).t()
    assert torch.equal(load_file(save_lora(tmp_path / "a.safetensors", {"a": view}, {}))["a"], view)


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    paths = [save_lora(tmp_path / "a.safetensors", {"a": torch.tensor([float(n)])}, {}) for n in range(3)]
    assert [path.name for path in paths] == ["a.safetensors", "a_2.safetensors", "a_3.safetensors"]
    assert [load_file(path)["a"].item() for path in paths] == [0.0, 1.0, 2.0]


def test_folders_are_made(tmp_path: Path) -> None:
    assert save_lora(tmp_path / "people" / "anna.safetensors", TENSORS, {}).exists()


def test_a_file_in_the_way_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "people").write_text("a file")
    with pytest.raises(InputError, match="could not be written"):
        save_lora(tmp_path / "people" / "anna.safetensors", TENSORS, {})


def test_a_name_too_long_for_the_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"):
        save_lora(tmp_path / f"{'a' * 300}.safetensors", TENSORS, {})


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond so many bytes, as on a full disk (Linux, macOS)."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not be written"), files_of_at_most(2000):
        save_lora(tmp_path / "a.safetensors", {"a": torch.zeros(10_000)}, {})
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left_behind(tmp_path: Path) -> None:
    save_lora(tmp_path / "a.safetensors", TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_free_path_stays(tmp_path: Path) -> None:
    assert free_path(tmp_path / "a.b.safetensors") == tmp_path / "a.b.safetensors"


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


# ---------------------------------------------------------------- metadata


def metadata(config: LoRAConfig = LoRAConfig(), **changes) -> dict[str, str]:  # noqa: B008
    values = dict(
        name="anna", base_version="sd_v1", architecture="stable-diffusion-v1", prediction="eps", resolution=512,
        pictures=3, prior_pictures=2, buckets={(512, 512): 2, (640, 384): 1}, tag_frequency={"zwx": 3},
        trigger_word="zwx", dataset_name="10_anna", step=100, epoch=4, started_at=0.0, ended_at=60.0,
    )  # fmt: skip
    return lora_metadata(config, **{**values, **changes})


def test_metadata_is_text_alone() -> None:
    assert all(isinstance(value, str) for value in metadata().values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ss_base_model_version", "sd_v1"),
        ("ss_network_module", "networks.lora"),
        ("ss_network_dim", "8"),
        ("ss_network_alpha", "4.0"),
        ("ss_output_name", "anna"),
        ("ss_steps", "100"),
        ("ss_epoch", "4"),
        ("ss_num_train_images", "3"),
        ("ss_num_reg_images", "2"),
        ("modelspec.architecture", "stable-diffusion-v1/lora"),
        ("modelspec.prediction_type", "epsilon"),
        ("modelspec.trigger_phrase", "zwx"),
        ("modelspec.date", "1970-01-01T00:01:00+00:00"),
    ],
)
def test_metadata_says_what_was_trained(key: str, value: str) -> None:
    assert metadata(LoRAConfig(rank=8, alpha=4.0))[key] == value


def test_metadata_holds_buckets_and_tags_as_kohya_writes_them() -> None:
    values = metadata()
    assert json.loads(values["ss_bucket_info"])["buckets"]["1"] == {"resolution": [640, 384], "count": 1}
    assert json.loads(values["ss_tag_frequency"]) == {"10_anna": {"zwx": 3}}


def test_metadata_leaves_out_what_was_off() -> None:
    values = metadata(trigger_word="", prediction="flow")
    off = {"ss_min_snr_gamma", "ss_noise_offset", "modelspec.trigger_phrase", "modelspec.prediction_type"}
    assert not off & set(values)


def test_a_lora_model_is_its_state_dict() -> None:
    lora = LoRAModel(TENSORS, {"a": "b"}, "anna")
    assert dict(lora) == TENSORS and lora.metadata == {"a": "b"} and lora.name == "anna"
