"""The recipe: contradictions refused, derived values right, presets usable."""

import dataclasses
import math

import pytest
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import DEFAULTS, FIELDS, LIMITS, PRESETS, LoRAConfig, preset_values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("rank", -4),
        ("rank", "16"),
        ("alpha", 0.0),
        ("alpha", math.nan),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("steps", 0),
        ("epochs", -1),
        ("warmup", -0.1),
        ("weight_decay", -1.0),
        ("max_grad_norm", -1.0),
        ("min_snr_gamma", math.nan),
        ("noise_offset", -0.1),
        ("seed", -1),
        ("save_every", -1),
        ("sample_every", -1),
        ("sample_steps", 0),
        ("targets", "everything"),
        ("optimizer", "sgd"),
        ("scheduler", "sine"),
        ("precision", "fp8"),
        ("base_precision", "fp4"),
        ("save_precision", "fp8"),
        ("adapter", "boft"),
        ("layer_rules", "*attn* size=3"),
        ("conv_rank", -1),
        ("lokr_factor", 0),
        ("dropout", 1.0),
        ("rank_dropout", -0.1),
        ("module_dropout", math.nan),
        ("text_encoder_learning_rate", -1e-5),
        ("scheduler_cycles", 0),
        ("scheduler_power", 0.0),
        ("loss", "l1"),
        ("huber_c", 0.0),
        ("huber_schedule", "linear"),
        ("multires_noise_iterations", -1),
        ("ip_noise_gamma", -0.1),
        ("min_timestep", 1000),
        ("max_timestep", 1001),
        ("timestep_sampling", "mode"),
        ("logit_std", 0.0),
        ("timestep_shift", -1.0),
        ("ema_decay", 1.0),
        ("rank", 4000),
        ("learning_rate", 100.0),
        ("text_encoder_learning_rate", 100.0),
        ("steps", 10**7),
        ("batch_size", 10**5),
        ("noise_offset", 5.0),
        ("sample_guidance", -1.0),
        ("sample_guidance", 700.0),
        ("sample_steps", 2000),
        ("logit_mean", 50.0),
        ("scheduler_power", 1e6),
        ("checkpoint_minutes", 1e6),
        ("lokr_factor", 10**6),
    ],
)
def test_a_bad_value_is_refused_by_its_name(name: str, value) -> None:
    with pytest.raises(InputError, match=name):
        LoRAConfig.of(**{name: value})


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        LoRAConfig.of(rank=0, alpha=-1.0, optimizer="sgd")
    assert [problem.split()[0] for problem in caught.value.problems] == ["rank", "alpha", "optimizer"]


def test_samples_need_a_prompt() -> None:
    with pytest.raises(InputError, match="sample_prompts is empty"):
        LoRAConfig.of(sample_every=10)


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(InputError, match="warmup is 100 steps of 100"):
        LoRAConfig.of(steps=100, warmup=100)


def test_8_bit_products_go_with_no_fp16() -> None:
    with pytest.raises(InputError, match="precision is fp16 and base_precision is 'fp8 matmul'"):
        LoRAConfig.of(precision="fp16", base_precision="fp8 matmul")
    assert LoRAConfig.of(precision="fp16", base_precision="fp8").run.precision == "fp16"


def test_a_warm_up_in_steps_is_no_contradiction_where_epochs_count() -> None:
    assert LoRAConfig.of(steps=10, epochs=5, warmup=100).optimization.warmup_steps(1000) == 100


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.1, 100), (0.5, 500), (1, 1), (50, 50)])
def test_warm_up_is_a_share_or_a_number_of_steps(warmup: float, steps: int) -> None:
    assert LoRAConfig.of(steps=1000, warmup=warmup).optimization.warmup_steps(1000) == steps


@pytest.mark.parametrize("name", ["warmup", "steps", "learning_rate", "lokr_factor", "sample_every", "min_timestep"])
def test_a_text_in_place_of_a_number_is_refused_in_words(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is "):
        LoRAConfig.of(**{name: "1"})


def test_every_number_has_limits() -> None:
    numbers = [name for name, default in DEFAULTS.items() if type(default) in (int, float)]
    assert list(LIMITS) == numbers


WHOLE = {name: default for name, default in DEFAULTS.items() if type(default) is int}


@pytest.mark.parametrize(("name", "usual"), WHOLE.items())
def test_a_number_that_is_not_whole_is_refused_where_only_whole_ones_count(name: str, usual: int) -> None:
    with pytest.raises(InputError) as caught:
        LoRAConfig.of(**{name: usual + 0.5})
    problem = caught.value.problems[0]
    assert problem.startswith(f"{name} is {usual + 0.5}; it must be a whole number ")
    assert problem.endswith(f"; {usual} is usual.")


@pytest.mark.parametrize(("name", "usual"), WHOLE.items())
def test_a_whole_number_may_come_with_a_point(name: str, usual: int) -> None:
    number = LoRAConfig.of(**{name: float(usual)}).flat()[name]
    assert number == usual and type(number) is int


@pytest.mark.parametrize("steps", [0, 10.5, math.nan])
def test_steps_do_not_matter_where_epochs_count(steps: float) -> None:
    assert LoRAConfig.of(steps=steps, epochs=5).optimization.epochs == 5  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("times", [(500, 500), (900, 100)])
def test_the_last_timestep_is_above_the_first(times: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"min_timestep is {times[0]} and max_timestep is {times[1]}"):
        LoRAConfig.of(min_timestep=times[0], max_timestep=times[1])


def test_whole_factors_of_lokr_may_have_any_rank() -> None:
    assert LoRAConfig.of(adapter="lokr", rank=1_000_000).adapter.rank == 1_000_000
    with pytest.raises(InputError, match="rank is 1000000"):
        LoRAConfig.of(rank=1_000_000)


def test_two_weightings_of_noise_at_once_are_refused() -> None:
    with pytest.raises(InputError, match="min_snr_gamma and debiased_estimation are both on"):
        LoRAConfig.of(min_snr_gamma=5.0, debiased_estimation=True)


def test_prodigy_at_the_usual_rate_of_others_is_refused() -> None:
    with pytest.raises(InputError, match="learning_rate is 0.0001 with prodigy"):
        LoRAConfig.of(optimizer="prodigy")
    assert LoRAConfig.of(optimizer="prodigy", learning_rate=1.0).optimization.optimizer == "prodigy"


def test_a_config_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoRAConfig().adapter.rank = 4


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_whole_recipe(name: str) -> None:
    values = preset_values(name)
    assert set(values) == set(FIELDS)
    assert LoRAConfig.of(**values).flat() == values


def test_custom_is_the_defaults() -> None:
    assert LoRAConfig.of(**preset_values("custom")) == LoRAConfig()


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match="preset is 'none'"):
        preset_values("none")
