"""musubi-tuner: sd-scripts' names with other defaults."""

from __future__ import annotations

import pytest
from lora_kiln.training import recipes

from foreign_recipes import MUSUBI, MUSUBI_DATA, list_of


def test_a_config_becomes_a_recipe() -> None:
    recipe = recipes.read(MUSUBI)
    adapter, training, run = recipe.config.adapter, recipe.config.optimization, recipe.config.run
    assert (adapter.kind, adapter.rank, adapter.alpha) == ("lora", 16, 8.0)
    assert (training.optimizer, training.learning_rate, training.epochs) == ("adamw8bit", 5e-5, 16)
    assert training.text_encoder_learning_rate == 0.0
    assert (recipe.config.objective.timestep_sampling, recipe.config.objective.timestep_shift) == ("shift", 2.2)
    assert (run.precision, run.base_precision, run.gradient_checkpointing) == ("bf16", "fp8", True)
    for key in ("dataset_config", "surprise"):
        assert list_of(recipe, key) == ["missing"], key
    for key in ("dit", "blocks_to_swap", "sdpa"):
        assert list_of(recipe, key) == ["ignored"], key


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("", "timestep_sampling", "uniform"),
        ('timestep_sampling = "sigmoid"', "timestep_sampling", "logit_normal"),
        ('timestep_sampling = "qwen_shift"', "timestep_sampling", "resolution_shift"),
        ('network_module = "networks.lokr"\nnetwork_args = ["factor=4"]', "lokr_factor", 4),
        ('network_module = "networks.loha"', "adapter", "loha"),
    ],
)
def test_a_setting_becomes_a_field(line: str, field: str, value: object) -> None:
    assert recipes.read(f'dit = "x.safetensors"\n{line}').config.flat()[field] == value


@pytest.mark.parametrize("sampling", ["qwen_shift", "logsnr", "qinglong_flux"])
def test_its_own_densities_are_said_to_be_lost(sampling: str) -> None:
    recipe = recipes.read(f'dit = "x"\ntimestep_sampling = "{sampling}"')
    assert list_of(recipe, "timestep_sampling") == ["missing"]


def test_its_dataset_file_has_no_training() -> None:
    recipe = recipes.read(MUSUBI_DATA)
    assert (recipe.dataset["resolution"], recipe.dataset["repeats"]) == (1024, 3)
    assert recipe.values == {"batch_size": 2} and not recipe.defaults
    assert list_of(recipe, "datasets[0].control_directory") == ["missing"]
    for number in (0, 1):
        assert list_of(recipe, f"datasets[{number}].image_directory") == ["ignored"]
