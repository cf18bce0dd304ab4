"""Each row of the table of families agrees with the host, and a family is added by a row alone."""

from __future__ import annotations

import re
from typing import Any

import comfy.model_base
import comfy.supported_models
import pytest
from lora_kiln.training import host
from lora_kiln.training.adapters.settings import BLOCK_TARGETS
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import PRESETS, TARGETS, TIMESTEP_SAMPLINGS
from lora_kiln.training.host import families
from lora_kiln.training.host.families import FAMILIES, ModelFamily, Version
from lora_kiln.training.run.trainer import train_lora
from torch import nn

import models
from training_runs import changed, dataset, graph_models

OTHER_UNETS = FAMILIES[-1]
by_row = pytest.mark.parametrize("row", FAMILIES, ids=lambda row: row.name)
with_model = pytest.mark.parametrize("row", FAMILIES[:-1], ids=lambda row: row.name)

ABSENT = {"siglip_refiner"}
"""Lists of blocks that the family's tiny model has not, and other checkpoints have."""


@by_row
def test_its_classes_are_the_hosts(row: ModelFamily) -> None:
    assert issubclass(getattr(comfy.model_base, row.model_class), comfy.model_base.BaseModel)
    configs = {*row.config_classes, *(version.config_class for version in row.versions)}
    assert all(hasattr(comfy.supported_models, name) for name in configs)


@by_row
def test_its_choices_are_those_of_the_config(row: ModelFamily) -> None:
    assert row.timestep_density in TIMESTEP_SAMPLINGS
    assert set(row.presets) <= PRESETS.keys()
    assert row.target_blocks.keys() <= set(TARGETS)
    assert row.kohya_paths in ("original", "diffusers")
    assert row.label_embedding in ("class_embedding", "add_embedding")


def test_rows_have_names_of_their_own() -> None:
    assert len({row.name for row in FAMILIES}) == len(FAMILIES)
    assert {row.name for row in FAMILIES} - {OTHER_UNETS.name} == models.FAMILIES.keys()


@with_model
def test_a_model_is_found_by_its_class_and_config(row: ModelFamily) -> None:
    assert host.family_of(models.FAMILIES[row.name]()) is row


@with_model
def test_its_text_enters_where_the_row_says(row: ModelFamily) -> None:
    base = models.FAMILIES[row.name]().model
    if row.text_layer:
        assert base.diffusion_model.get_submodule(row.text_layer).in_features > 0
    else:
        assert base.model_config.unet_config[row.text_width] > 0
    if row.pooled_width:
        assert row.pooled_width in base.model_config.unet_config or hasattr(base, row.pooled_width)


@with_model
def test_its_blocks_are_all_outermost_lists_of_modules(row: ModelFamily) -> None:
    network = models.FAMILIES[row.name]().model.diffusion_model
    lists = {name for name, child in network.named_children() if isinstance(child, nn.ModuleList)}
    assert set(row.blocks) - {"middle_block"} - ABSENT == lists - ABSENT
    assert all(len(network.get_submodule(name)) > 0 for name in row.blocks if name not in ABSENT)


@with_model
def test_its_blocks_and_layers_of_special_kinds_are_there(row: ModelFamily) -> None:
    network = models.FAMILIES[row.name]().model.diffusion_model
    kinds = {type(module).__name__ for module in network.modules()}
    assert set(row.in_place_blocks) <= kinds
    paths = [name for name, _ in network.named_modules()]
    assert not row.fused_layers or any(re.fullmatch(row.fused_layers, path) for path in paths)
    assert all(any(path.startswith(start) for path in paths) for start in row.target_blocks.values())


@with_model
def test_its_metadata_names_lead_back_to_the_row(row: ModelFamily) -> None:
    version, architecture = host.base_version(models.FAMILIES[row.name]())
    assert (version, architecture) in {(each.base_version, each.architecture) for each in row.versions}
    for each in row.versions:
        assert host.family_of_version(each.base_version) is row
        assert host.family_of_architecture(f"{each.architecture}/lora") is row


@pytest.mark.parametrize(
    ("changes", "version"),
    [
        ({}, ("sd3_m", "stable-diffusion-3-medium")),
        ({"depth": 38}, ("sd3_5-large", "stable-diffusion-3-5-large")),
        ({"x_block_self_attn_layers": [0, 1]}, ("sd3_5-medium", "stable-diffusion-3-5-medium")),
    ],
)
def test_versions_of_sd3_are_told_by_their_size(changes: dict[str, Any], version: tuple[str, str]) -> None:
    model = models.sd3().model
    model.model.model_config.unet_config.update(changes)
    assert host.base_version(model) == version


def test_an_unlisted_version_is_named_after_the_hosts_class() -> None:
    model = models.sdxl().model
    model.model.model_config.__class__ = comfy.supported_models.Segmind_Vega
    assert host.family_of(model).name == "SDXL"
    assert host.base_version(model) == ("segmind_vega", "segmind-vega")


def test_other_unets_are_known_and_other_transformers_are_not() -> None:
    unet = models.sd15().model
    unet.model.__class__ = comfy.model_base.SD21UNCLIP
    unet.model.model_config.__class__ = comfy.supported_models.SD21UnclipL
    assert host.family_of(unet) is OTHER_UNETS
    with pytest.raises(InputError, match="model is a LongCatImage, which cannot be trained so far: SD1.5, .* can"):
        host.family_of(models.long_cat_image())


def test_each_choice_of_targets_that_names_a_block_is_of_one_row() -> None:
    assert sorted(choice for row in FAMILIES for choice in row.target_blocks) == sorted(BLOCK_TARGETS)


# ---------------------------------------------------------------- another family


class MadeUp(comfy.model_base.SD3):
    """A family that the table does not know."""


ROW = ModelFamily(
    name="Made Up",
    model_class=f"{MadeUp.__module__}.{MadeUp.__qualname__}",
    text_layer="context_embedder",
    pooled_width="adm_channels",
    blocks=("joint_blocks",),
    timestep_density="uniform",
    timestep_shift=5.0,
    resolution=families.Resolution(native=1024, too_small=64, smallest=512),
    versions=(Version("SD3", "made_up", "made-up"),),
    architecture="made-up",
    implementation="its own code",
    network_module="networks.lora_made_up",
)


def made_up() -> models.Small:
    small = models.sd3()
    small.model.model.__class__ = MadeUp
    return small


@pytest.mark.usefixtures("lora_folder")
def test_a_row_is_all_that_another_family_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, ROW))
    small = made_up()
    config = changed(steps=2, gradient_checkpointing=True)
    trained = train_lora(graph_models(small), dataset(), config, "test")
    assert any(tensor.any() for name, tensor in trained.lora.items() if "lora_up" in name)
    assert trained.lora.metadata["ss_base_model_version"] == "made_up"
    assert trained.lora.metadata["ss_network_module"] == "networks.lora_made_up"
    assert trained.lora.metadata["ss_timestep_sampling"] == "uniform"
    assert host.family(small.model).shift == 5.0
    assert trained.lora.metadata["modelspec.architecture"] == "made-up/lora"
    assert trained.lora.metadata["modelspec.implementation"] == "its own code"
    assert "resolution is 64 on Made Up, which was made for 1024" in trained.report


@pytest.mark.usefixtures("lora_folder")
def test_without_the_row_it_is_refused() -> None:
    small = made_up()
    with pytest.raises(InputError, match="model is a MadeUp, which cannot be trained so far"):
        train_lora(graph_models(small), dataset(), changed(steps=2), "test")
