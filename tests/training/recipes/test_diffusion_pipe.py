"""diffusion-pipe: what each setting of the run and of the pictures becomes."""

from __future__ import annotations

import pytest
from lora_kiln.training import recipes

from foreign_recipes import PIPE, PIPE_DATA, line_of, list_of

SDXL = """
pipeline_stages = 1
{top}
[model]
type = "sdxl"
{model}
[adapter]
type = "lora"
rank = 8
[optimizer]
lr = 1e-4
"""


def test_a_run_becomes_a_recipe() -> None:
    recipe = recipes.read(PIPE)
    adapter, training, run = recipe.config.adapter, recipe.config.optimization, recipe.config.run
    assert (adapter.kind, adapter.rank, adapter.alpha) == ("lora", 32, 32.0)
    assert (training.optimizer, training.weight_decay, training.optimizer_args) == ("adamw", 0.02, "betas=0.9,0.99")
    assert (training.learning_rate, training.text_encoder_learning_rate, training.epochs) == (2e-5, 0.0, 100)
    assert (training.batch_size, training.gradient_accumulation, training.max_grad_norm) == (2, 4, 0.5)
    assert (training.scheduler, training.warmup) == ("constant", 20.0)
    assert recipe.config.objective.timestep_sampling == "resolution_shift"
    assert (run.precision, run.save_precision, run.base_precision) == ("bf16", "bf16", "fp8")
    assert run.gradient_checkpointing
    for key in ("save_every_n_epochs", "surprise", "adapter.dtype"):
        assert list_of(recipe, key) == ["missing"], key
    for key in ("dataset", "eval_every_n_epochs", "monitoring.wandb_api_key", "model.diffusers_path"):
        assert list_of(recipe, key) == ["ignored"], key
    assert "k-1" not in line_of(recipe, "monitoring.wandb_api_key")


@pytest.mark.parametrize(
    ("top", "model", "field", "value"),
    [
        ("max_steps = 900", "", "steps", 900),
        ("micro_batch_size_per_gpu = [[512, 4], [1024, 1]]", "", "batch_size", 1),
        ("lr_scheduler = 'cosine'", "", "scheduler", "cosine"),
        ("pseudo_huber_c = 0.5", "", "loss", "l2"),
        ("", "", "text_encoder_learning_rate", 1e-4),
        ("", "unet_lr = 5e-5\ntext_encoder_1_lr = 0", "text_encoder_learning_rate", 0.0),
        ("", "unet_lr = 5e-5", "learning_rate", 5e-5),
        ("", "min_snr_gamma = 5", "min_snr_gamma", 5.0),
        ("", "debiased_estimation_loss = true", "debiased_estimation", True),
        ("", "", "timestep_sampling", "auto"),
    ],
)
def test_a_setting_of_sdxl_becomes_a_field(top: str, model: str, field: str, value: object) -> None:
    assert recipes.read(SDXL.format(top=top, model=model)).config.flat()[field] == value


@pytest.mark.parametrize(
    ("top", "model", "field", "value"),
    [
        ("", "timestep_sample_method = 'uniform'", "timestep_sampling", "uniform"),
        ("", "shift = 3.0\nsigmoid_scale = 1.5", "timestep_shift", 3.0),
        ("", "", "timestep_sampling", "logit_normal"),
        ("pseudo_huber_c = 0.5", "", "loss", "smooth_l1"),
    ],
)
def test_a_setting_of_a_flow_model_becomes_a_field(top: str, model: str, field: str, value: object) -> None:
    assert recipes.read(SDXL.replace('"sdxl"', '"wan"').format(top=top, model=model)).config.flat()[field] == value


def test_a_whole_lokr() -> None:
    text = 'pipeline_stages = 1\n[adapter]\ntype = "lokr"\nrank = 1e6\ndecompose_factor = 4\n[optimizer]\nlr = 1e-4'
    adapter = recipes.read(text).config.adapter
    assert (adapter.kind, adapter.rank, adapter.lokr_factor) == ("lokr", 1_000_000, 4)


def test_a_run_without_an_adapter_is_said_to_be_of_the_whole_model() -> None:
    assert any("whole model" in line for line in recipes.read("pipeline_stages = 1\nepochs = 3").missing)


def test_its_dataset_file_has_no_training() -> None:
    recipe = recipes.read(PIPE_DATA)
    assert recipe.dataset == {"resolution": 1024, "extra_resolutions": "512", "repeats": 3, "masked_loss": True}
    assert not recipe.values and not recipe.defaults
    assert list_of(recipe, "directory[1].num_repeats") == ["missing"]
    assert list_of(recipe, "min_ar") == ["ignored"]
    square = recipes.read("resolutions = [[1024, 256]]\nenable_ar_bucket = false\n[[directory]]\npath = 'x'").dataset
    assert (square["resolution"], square["longest_side"]) == (512, 512)


@pytest.mark.parametrize("dataset", ['dataset = "fox.toml"', ""])
@pytest.mark.parametrize("module", ["", 'network_module = "networks.lora"'])
def test_sd_scripts_tables_of_the_same_names_are_not_its_own(dataset: str, module: str) -> None:
    table = "" if dataset else "[dataset]\nresolution = 512"
    text = f"{dataset}\n[model]\ntype = 'x'\nnetwork_dim = 8\n{module}\n[optimizer]\nlearning_rate = 1e-4\n{table}"
    recipe = recipes.read(text)
    assert (recipe.source, recipe.config.adapter.rank) == ("sd-scripts TOML", 8)


def test_a_run_is_told_by_its_tables_alone() -> None:
    text = "dataset = 'fox.toml'\n[model]\ntype = 'sdxl'\n[adapter]\nrank = 8\n[optimizer]\nlr = 1e-4"
    recipe = recipes.read(text)
    assert (recipe.source, recipe.config.adapter.rank) == ("diffusion-pipe TOML", 8)
