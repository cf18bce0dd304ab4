"""sd-scripts: what each argument becomes."""

from __future__ import annotations

from typing import Any

import pytest
from lora_kiln.training import recipes
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.recipes.sd_scripts import keys as sd_scripts_keys

from foreign_recipes import TOML, line_of, list_of, toml

BLOCKS = "attention, feed-forward and convolutions"


def test_toml_becomes_a_config() -> None:
    recipe = recipes.read(TOML)
    assert recipe.source == "sd-scripts TOML"
    config = recipe.config
    assert (config.adapter.kind, config.adapter.rank, config.adapter.alpha, config.adapter.dropout) == (
        "lora",
        24,
        12.0,
        0.05,
    )
    assert (config.adapter.targets, config.adapter.conv_rank, config.adapter.conv_alpha) == (BLOCKS, 8, 2.0)
    assert (
        config.adapter.rank_dropout,
        config.optimization.learning_rate,
        config.optimization.text_encoder_learning_rate,
    ) == (0.1, 2e-4, 1e-5)
    assert (config.optimization.optimizer, config.optimization.weight_decay, config.optimization.optimizer_args) == (
        "adamw8bit",
        0.1,
        "betas=0.9,0.99",
    )
    assert (config.optimization.scheduler, config.optimization.scheduler_cycles, config.optimization.warmup) == (
        "cosine_with_restarts",
        4,
        0.05,
    )
    assert (config.optimization.epochs, config.optimization.batch_size, config.run.seed) == (12, 3, 7)
    assert (config.run.precision, config.run.save_precision) == ("bf16", "fp16")
    assert (config.objective.min_snr_gamma, config.objective.noise_offset) == (5.0, 0.03)


def test_toml_becomes_dataset_settings() -> None:
    data = recipes.read(TOML).dataset
    assert (data["resolution"], data["shortest_side"], data["longest_side"]) == (768, 256, 1536)
    assert data["shuffle_tags"] and data["keep_tokens"] == 2 and data["caption_dropout"] == 0.1


def test_what_cannot_be_carried_over_says_what_it_would_have_done() -> None:
    recipe = recipes.read(TOML)
    assert "LoRA+" in line_of(recipe, "network.network_args.loraplus_lr_ratio")
    assert "colours" in line_of(recipe, "data.color_aug")
    assert any("further text encoders" in line for line in recipe.missing)


def test_an_empty_toml_is_kohyas_defaults_not_ours() -> None:
    recipe = recipes.read("# nothing\n", "empty.toml")
    config, ours = recipe.config, LoRAConfig()
    assert (config.adapter.rank, config.adapter.alpha) == (4, 1.0) and (ours.adapter.rank, ours.adapter.alpha) == (
        16,
        16.0,
    )
    assert (config.optimization.learning_rate, config.optimization.text_encoder_learning_rate) == (2e-6, 2e-6)
    assert (config.optimization.scheduler, config.optimization.steps, config.optimization.optimizer) == (
        "constant",
        1600,
        "adamw",
    )
    assert (config.run.precision, config.run.save_precision) == ("fp32", "fp32")
    assert config.adapter.targets == "attention and feed-forward"
    listed = {line.split(" -> ")[0] for line in recipe.defaults}
    assert {"network_dim", "network_alpha", "learning_rate", "lr_scheduler", "max_train_steps"} <= listed
    assert recipe.carried == () and recipe.ignored == ()


@pytest.mark.parametrize(
    ("lines", "field", "value"),
    [
        (["network_dim = 8", "network_alpha = 0"], "alpha", 8.0),
        (['network_module = "lycoris.kohya"', 'network_args = ["algo=loha"]'], "adapter", "loha"),
        (['network_module = "lycoris.kohya"', 'network_args = ["algo=locon", "dora_wd=True"]'], "adapter", "dora"),
        (['network_module = "lycoris.kohya"', 'network_args = ["algo=diag-oft"]'], "adapter", "oft"),
        (['network_module = "lycoris.kohya"', 'network_args = ["preset=attn-only"]'], "targets", "attention"),
        (['network_module = "lycoris.kohya"'], "targets", "all linear and convolution"),
        (['network_module = "networks.oft"', 'network_args = ["enable_conv=True"]'], "targets", BLOCKS),
        (['network_module = "networks.loha"', 'network_args = ["conv_dim=4"]'], "targets", BLOCKS),
        (['network_module = "lycoris.kohya"', 'network_args = ["rs_lora=True"]'], "rslora", True),
        (
            ['network_module = "lycoris.kohya"', 'network_args = ["preset=unet-transformer-only"]', "unet_lr = 1e-4"],
            "text_encoder_learning_rate",
            0.0,
        ),
        (['network_module = "lycoris.kohya"', 'network_args = ["algo=lokr", "factor=8"]'], "lokr_factor", 8),
        (["unet_lr = 1e-4", "network_train_unet_only = true"], "text_encoder_learning_rate", 0.0),
        (["unet_lr = 1e-4", "cache_text_encoder_outputs = true"], "text_encoder_learning_rate", 0.0),
        (["learning_rate = 3e-4"], "text_encoder_learning_rate", 3e-4),
        (["learning_rate = 3e-4"], "learning_rate", 3e-4),
        (["learning_rate = 3e-4", "text_encoder_lr = 1e-5"], "text_encoder_learning_rate", 1e-5),
        (["max_train_steps = 77"], "steps", 77),
        (["lr_warmup_steps = 30"], "warmup", 30.0),
        (["gradient_accumulation_steps = 2"], "gradient_accumulation", 2),
        (["max_grad_norm = 0"], "max_grad_norm", 0.0),
        (["fp8_base = true"], "base_precision", "fp8"),
        (["fp8_base = false", "fp8_scaled = true"], "base_precision", "fp8"),
        (["fp8_base = false"], "base_precision", "as loaded"),
        (["gradient_checkpointing = true"], "gradient_checkpointing", True),
        (['lr_scheduler = "polynomial"', "lr_scheduler_power = 2"], "scheduler_power", 2.0),
        (['loss_type = "huber"', "huber_c = 0.3"], "huber_c", 0.3),
        (['loss_type = "huber"', 'huber_schedule = "constant"', "huber_c = 0.2", "huber_scale = 2"], "huber_c", 0.4),
        (['loss_type = "smooth_l1"', 'huber_schedule = "exponential"'], "huber_schedule", "exponential"),
        (["debiased_estimation_loss = true"], "debiased_estimation", True),
        (["multires_noise_iterations = 8"], "multires_noise_discount", 0.3),
        (["ip_noise_gamma = 0.1"], "ip_noise_gamma", 0.1),
        (["zero_terminal_snr = true"], "zero_terminal_snr", True),
        (["min_timestep = 100", "max_timestep = 900"], "min_timestep", 100),
        (["max_timestep = 900"], "max_timestep", 900),
        (["save_every_n_steps = 250"], "save_every", 250),
        (['save_precision = "bf16"'], "save_precision", "bf16"),
        (['timestep_sampling = "flux_shift"'], "timestep_sampling", "resolution_shift"),
        (['timestep_sampling = "shift"', "discrete_flow_shift = 3.1"], "timestep_shift", 3.1),
        (['timestep_sampling = "sigmoid"', "sigmoid_scale = 1.5"], "logit_std", 1.5),
        (['timestep_sampling = "sigmoid"'], "timestep_sampling", "logit_normal"),
        (['timestep_sampling = "uniform"'], "timestep_sampling", "uniform"),
        (['weighting_scheme = "logit_normal"', "logit_mean = 0.5"], "logit_mean", -0.5),
        (['weighting_scheme = "logit_normal"'], "timestep_sampling", "shift"),
    ],
)  # fmt: skip
def test_an_argument_becomes_a_field(lines: list[str], field: str, value: Any) -> None:
    made = toml(*lines).config.flat()[field]
    assert made == (pytest.approx(value) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("lines", "setting", "value"),
    [
        (["resolution = 640"], "resolution", 640),
        (['resolution = "512,2048"'], "resolution", 1024),
        (["resolution = 512"], "longest_side", 512),
        (["enable_bucket = true", "bucket_reso_steps = 32"], "bucket_step", 32),
        (["flip_aug = true"], "flip", True),
        (["random_crop = true"], "random_crop", True),
        (["caption_tag_dropout_rate = 0.2"], "tag_dropout", 0.2),
        (["prior_loss_weight = 0.5"], "prior_loss_weight", 0.5),
        (["masked_loss = true"], "masked_loss", True),
        (["alpha_mask = true"], "masked_loss", True),
        (['caption_prefix = "photo of "'], "caption_prefix", "photo of"),
        (["dataset_repeats = 5"], "repeats", 5),
    ],
)
def test_an_argument_becomes_a_setting_of_load_dataset(lines: list[str], setting: str, value: Any) -> None:
    assert toml(*lines).dataset[setting] == value


@pytest.mark.parametrize(
    ("name", "ours", "decay", "arguments", "place"),
    [
        ("AdamW", "adamw", 0.01, "", "carried"),
        ("AdamW8bit", "adamw8bit", 0.01, "", "carried"),
        ("PagedAdamW8bit", "adamw8bit", 0.01, "is_paged=True", "carried"),
        ("Lion", "lion", 0.0, "", "carried"),
        ("Lion8bit", "lion", 0.0, "", "missing"),
        ("Prodigy", "prodigy", 0.0, "", "carried"),
        ("prodigyopt.Prodigy", "prodigy", 0.0, "", "carried"),
        ("DAdaptAdam", "prodigy", 0.0, "", "missing"),
        ("AdamWScheduleFree", "schedule_free", 0.0, "", "carried"),
        ("SGDNesterov", "adamw", 0.01, "", "missing"),
    ],
)
def test_an_optimizer_keeps_its_own_defaults(name: str, ours: str, decay: float, arguments: str, place: str) -> None:
    recipe = toml(f'optimizer_type = "{name}"', "learning_rate = 1.0")
    config = recipe.config
    assert (config.optimization.optimizer, config.optimization.weight_decay, config.optimization.optimizer_args) == (
        ours,
        decay,
        arguments,
    )
    assert list_of(recipe, "optimizer_type") == [place]


def test_older_switches_choose_the_optimizer() -> None:
    assert toml("use_8bit_adam = true").config.optimization.optimizer == "adamw8bit"
    assert toml("use_lion_optimizer = true").config.optimization.optimizer == "lion"


def test_adafactor_without_its_own_rate_scales_by_the_weights_as_its_package_does() -> None:
    recipe = toml('optimizer_type = "Adafactor"', 'optimizer_args = ["relative_step=False", "warmup_init=False"]')
    assert recipe.config.optimization.optimizer_args == "scale_parameter=True"
    assert list_of(recipe, "optimizer_args.relative_step") == ["ignored"]


def test_adafactors_own_rate_is_said_to_be_lost() -> None:
    recipe = toml('optimizer_type = "Adafactor"')
    assert any(line.startswith("optimizer_args.relative_step (absent, so true)") for line in recipe.missing)


def test_schedule_free_takes_no_scheduler_and_keeps_its_warmup() -> None:
    lines = ['optimizer_type = "AdamWScheduleFree"', 'optimizer_args = ["warmup_steps=40"]', 'lr_scheduler = "cosine"']
    recipe = toml(*lines)
    assert (recipe.config.optimization.scheduler, recipe.config.optimization.warmup) == ("constant", 40.0)
    assert list_of(recipe, "lr_scheduler") == ["ignored"]


def test_prodigy_gets_one_rate_for_all() -> None:
    recipe = toml('optimizer_type = "Prodigy"', "unet_lr = 1.0", "text_encoder_lr = 0.5")
    assert recipe.config.optimization.text_encoder_learning_rate == recipe.config.optimization.learning_rate == 1.0


@pytest.mark.parametrize("module", ["networks.dylora", "networks.lora_fa", "my.network"])
def test_another_network_is_said_to_be_lost(module: str) -> None:
    recipe = toml(f'network_module = "{module}"')
    assert recipe.config.adapter.kind == "lora" and list_of(recipe, "network_module") == ["missing"]


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('mixed_precision = "fp8"', "precision", "auto"),
        ('lr_scheduler = "inverse_sqrt"', "scheduler", "constant"),
        ('lr_scheduler = "cosine_with_min_lr"', "scheduler", "cosine"),
        ('loss_type = "l1"', "loss", "l2"),
    ],
)
def test_what_takes_the_place_of_something_not_offered_is_named(line: str, field: str, value: str) -> None:
    recipe = toml(line)
    key = line.split(" ")[0]
    assert recipe.config.flat()[field] == value
    assert list_of(recipe, key) == ["missing"] and f'{field} = "{value}" in its place' in line_of(recipe, key)


@pytest.mark.parametrize(
    "line", ["scale_weight_norms = 0", "color_aug = false", "clip_skip = 1", 'dataset_config = ""']
)
def test_what_is_off_loses_nothing(line: str) -> None:
    assert list_of(toml(line), line.split(" ")[0]) == ["ignored"]


def test_sample_prompts_in_another_file_are_lost_with_their_interval() -> None:
    recipe = toml('sample_prompts = "prompts.txt"', "sample_every_n_steps = 100")
    assert recipe.config.run.sample_every == 0
    assert list_of(recipe, "sample_prompts") == list_of(recipe, "sample_every_n_steps") == ["missing"]


DATASETS = """
[general]
shuffle_caption = true
flip_aug = false

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 1
  [[datasets.subsets]]
  image_dir = "/data/a"
  num_repeats = 3
  flip_aug = true
  [[datasets.subsets]]
  image_dir = "/data/b"
  num_repeats = 7
  [[datasets.subsets]]
  is_reg = true
  image_dir = "/data/reg"
  num_repeats = 2

[[datasets]]
resolution = [768, 768]
"""


def test_a_dataset_file_sets_load_dataset_and_leaves_the_training_alone() -> None:
    recipe = recipes.read(DATASETS)
    assert recipe.source == "sd-scripts dataset file"
    assert recipe.values == {"batch_size": 4} and recipe.config.adapter.rank == LoRAConfig().adapter.rank
    data = recipe.dataset
    assert (data["resolution"], data["extra_resolutions"], data["repeats"]) == (512, "768", 3)
    assert data["shuffle_tags"] and data["flip"] and data["keep_tokens"] == 1


def test_a_second_subsets_other_value_is_said_to_be_lost() -> None:
    recipe = recipes.read(DATASETS)
    assert list_of(recipe, "datasets[0].subsets[1].num_repeats") == ["missing"]
    assert list_of(recipe, "datasets[0].subsets[2].num_repeats") == ["missing"]
    assert list_of(recipe, "general.flip_aug") == ["missing"]
    assert list_of(recipe, "datasets[1].resolution") == ["carried"]


def test_every_argument_of_the_tables_is_settled_by_itself() -> None:
    """A key that two tables claim, or none does, would be settled by chance."""
    tables = (set(sd_scripts_keys.IGNORED), set(sd_scripts_keys.MISSING), set(sd_scripts_keys.CARRIED))
    assert not tables[0] & tables[1] and not tables[0] & tables[2] and not tables[1] & tables[2]
    known = sorted(key for key in sd_scripts_keys.KNOWN if "." not in key)
    recipe = toml(*(f'{key} = ""' for key in known if key != "is_reg"))
    assert not [line for line in (*recipe.missing, *recipe.ignored) if "unknown" in line]
