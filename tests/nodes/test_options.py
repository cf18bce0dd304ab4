"""Adapter, Loss and Optimizer Options: a recipe goes in, the same recipe with other values comes out."""

import pytest
from comfy_api.latest import io
from lora_kiln.nodes.adapter_options import AdapterOptions
from lora_kiln.nodes.lora_config import LoRAConfigNode
from lora_kiln.nodes.loss_options import LossOptions
from lora_kiln.nodes.optimizer_options import OptimizerOptions
from lora_kiln.nodes.run_options import RunOptions
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig, preset_values

OPTIONS = [AdapterOptions, LossOptions, OptimizerOptions, RunOptions]
START = LoRAConfig.of(rank=7, learning_rate=3e-4)
IMPORTED = LoRAConfig.of(
    rank=7, conv_rank=3, conv_alpha=2.0, rslora=True, lokr_factor=8, layer_rules="*attn2* lr=0.5", dropout=0.1,
    rank_dropout=0.2, module_dropout=0.3, loss="huber", huber_c=0.2, huber_schedule="constant",
    debiased_estimation=True, multires_noise_iterations=6, multires_noise_discount=0.5, ip_noise_gamma=0.1,
    zero_terminal_snr=True, min_timestep=100, max_timestep=900, timestep_sampling="shift", logit_mean=0.5,
    logit_std=0.8, timestep_shift=3.0, optimizer_args="eps=1e-7", scheduler_cycles=2, scheduler_power=1.5,
    ema_decay=0.99, deterministic=True, cuda_graphs=False, fit_memory=False,
    validation_share=0.1, validation_every=7, validation_patience=3, keep_best=True, on_divergence="step back",
    checkpoint_minutes=1.0, keep_checkpoints=4,
)  # fmt: skip
"""A recipe with none of the Options at its default."""


def inputs(node) -> dict:
    return {each.id: each for each in node.define_schema().inputs}


def test_every_field_of_the_recipe_can_be_set_in_one_place() -> None:
    places = [name for node in (LoRAConfigNode, *OPTIONS) for name in inputs(node) if name not in ("preset", "config")]
    assert sorted(places) == sorted(preset_values("custom"))


NUMBERS = [
    (each.id, number)
    for node in (LoRAConfigNode, *OPTIONS)
    for each in node.define_schema().inputs
    if isinstance(each, io.Int.Input | io.Float.Input)
    for number in (each.min, each.max)
]
"""Both ends of every number's field"""


@pytest.mark.parametrize(("name", "number"), NUMBERS)
def test_what_a_field_offers_the_recipe_takes(name: str, number: float) -> None:
    others = {"epochs": 1, "validation_share": 0.1, "sample_every": 1, "sample_prompts": ("a cat",)}
    assert LoRAConfig.of(**{**others, name: number}).flat()[name] == number


@pytest.mark.parametrize("node", OPTIONS)
def test_the_fields_as_the_page_shows_them_change_nothing(node) -> None:
    shown = {name: each.default for name, each in inputs(node).items() if name != "config"}
    assert [name for name, default in shown.items() if IMPORTED.flat()[name] == default] == []
    assert node.execute(IMPORTED, **shown).args[0] == IMPORTED


def test_a_field_that_was_moved_leaves_the_others_as_the_config_says() -> None:
    shown = {name: each.default for name, each in inputs(AdapterOptions).items() if name != "config"}
    assert AdapterOptions.execute(IMPORTED, **{**shown, "conv_rank": 5}).args[0] == IMPORTED.changed(conv_rank=5)


def test_a_value_is_changed_and_the_rest_stays() -> None:
    made = LossOptions.execute(AdapterOptions.execute(START, conv_rank=4).args[0], loss="huber").args[0]
    assert (made.adapter.conv_rank, made.objective.loss, made.adapter.rank, made.optimization.learning_rate) == (
        4,
        "huber",
        7,
        3e-4,
    )
    assert START.adapter.conv_rank == 0


@pytest.mark.parametrize(
    ("node", "name", "value"),
    [
        (AdapterOptions, "dropout", 1.0),
        (AdapterOptions, "lokr_factor", 0),
        (AdapterOptions, "conv_rank", 8.5),
        (LossOptions, "loss", "l1"),
        (LossOptions, "max_timestep", 0),
        (OptimizerOptions, "ema_decay", 1.0),
    ],
)
def test_a_bad_value_is_refused_by_its_name(node, name: str, value) -> None:
    with pytest.raises(InputError, match=name):
        node.execute(START, **{name: value})
