"""LoRA Config: the recipe that comes out is the one that was filled in."""

import pytest
from lora_kiln.nodes.lora_config import LoRAConfigNode, filled_in
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import PRESETS, LoRAConfig, preset_values

INPUTS = {each.id: each for each in LoRAConfigNode.define_schema().inputs}


def config(preset: str = "custom", **values) -> LoRAConfig:
    return LoRAConfigNode.execute(preset, **values).args[0]


@pytest.mark.parametrize("preset", [*PRESETS, "custom"])
def test_a_preset_alone_is_its_recipe(preset: str) -> None:
    assert config(preset) == LoRAConfig.of(**preset_values(preset))


def test_a_field_goes_before_its_preset() -> None:
    made = config("SDXL style", rank=4)
    assert made.adapter.rank == 4 and made.adapter.targets == PRESETS["SDXL style"]["targets"]


def test_a_field_that_is_not_given_is_the_presets() -> None:
    assert config("SDXL style", rank=None).adapter.rank == PRESETS["SDXL style"]["rank"]


def test_the_fields_as_the_page_fills_them_are_the_first_preset() -> None:
    shown = {name: each.default for name, each in INPUTS.items()}
    assert config(**shown) == LoRAConfig.of(**preset_values(shown["preset"]))


def test_choosing_a_preset_fills_in_its_recipe_and_nothing_else() -> None:
    own = {"sample_every": 100, "sample_prompts": ("a cat",), "save_every": 50, "precision": "fp32", "adapter": "dora"}
    own |= {"text_encoder_learning_rate": 2e-5, "optimizer": "lion", "seed": 7}
    filled = filled_in()
    assert filled.keys() == PRESETS.keys()
    for preset, values in PRESETS.items():
        assert filled[preset].keys() & own.keys() == set()
        assert LoRAConfig.of(**{**LoRAConfig.of(**own).flat(), **filled[preset]}) == LoRAConfig.of(**own, **values)


def test_one_preset_leaves_nothing_of_another() -> None:
    page = dict(preset_values("SDXL style"))
    page |= filled_in()["quick test"]
    assert page == preset_values("quick test")


def test_prompts_are_a_line_each() -> None:
    made = config(sample_prompts="a cat\n\n  a dog \n", sample_every=10)
    assert made.run.sample_prompts == ("a cat", "a dog")


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("alpha", 0.0), ("steps", 0), ("batch_size", 0), ("learning_rate", -1e-4), ("optimizer", "sgd")],
)
def test_a_bad_value_is_refused_by_its_name(name: str, value) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        config(**{name: value})


def test_all_numbers_far_off_are_refused_at_once_with_what_is_usual() -> None:
    with pytest.raises(InputError) as caught:
        config(learning_rate=100.0, rank=5000)
    assert set(caught.value.problems) == {
        "rank is 5000; it must be at most 1024, except for lokr; 16 is usual.",
        "learning_rate is 100.0; it must be a number above 0, at most 10; 0.0001 is usual.",
    }


def test_a_number_that_is_not_whole_is_refused_in_words() -> None:
    with pytest.raises(InputError) as caught:
        config(rank=16.5, batch_size=1.5)
    assert caught.value.problems == (
        "rank is 16.5; it must be a whole number of at least 1; 16 is usual.",
        "batch_size is 1.5; it must be a whole number from 1 to 512; 1 is usual.",
    )


def test_samples_without_a_prompt_are_refused() -> None:
    with pytest.raises(InputError, match="sample_prompts is empty"):
        config(sample_every=10, sample_prompts=" \n")


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match="preset is 'SD9'"):
        config("SD9")
