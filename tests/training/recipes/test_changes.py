"""Fields of the recipe set by hand: what is read, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.recipes import parse_changes


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        (" \n", {}),
        ("steps=2000 seed=7 learning_rate=1e-4", {"steps": 2000, "seed": 7, "learning_rate": 1e-4}),
        ("steps = 2000\nseed = 7", {"steps": 2000, "seed": 7}),
        ("steps=2000, seed=7; rank=4,", {"steps": 2000, "seed": 7, "rank": 4}),
        ("alpha=8", {"alpha": 8.0}),
        ("steps=2000;;, ,seed=7 ,;", {"steps": 2000, "seed": 7}),
        ('layer_rules="",; steps=9', {"layer_rules": "", "steps": 9}),
        ("rslora=true deterministic=no", {"rslora": True, "deterministic": False}),
        ('targets="all linear and convolution" rank=4', {"targets": "all linear and convolution", "rank": 4}),
        ("optimizer_args=betas=0.9,0.99", {"optimizer_args": "betas=0.9,0.99"}),
        ('optimizer_args="betas=0.9,0.99 eps=1e-8"', {"optimizer_args": "betas=0.9,0.99 eps=1e-8"}),
        ('layer_rules="*attn2* rank=4\n*ff* lr=2"', {"layer_rules": "*attn2* rank=4\n*ff* lr=2"}),
        ('layer_rules=""', {"layer_rules": ""}),
        ('sample_prompts="a fox\'s den\n\n a hare"', {"sample_prompts": ("a fox's den", "a hare")}),
    ],
)
def test_settings_are_read_by_the_kind_of_their_field(text: str, values: dict[str, Any]) -> None:
    found = parse_changes(text)
    assert found == values
    assert all(type(found[name]) is type(LoRAConfig().flat()[name]) for name in found)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("stpes=2000", ["changes sets stpes, which no recipe has; did you mean steps?"]),
        ("q=1", ["it may be one of: adapter, rank, alpha"]),
        ("steps=many rank=1.5", ['steps is "many"; it must be a whole number', 'rank is "1.5"; it must be a whole']),
        ("learning_rate=nan", ['learning_rate is "nan"; it must be a number']),
        ("rslora=maybe", ['rslora is "maybe"; it must be true or false']),
        ("steps=1 steps=2", ["changes sets steps twice"]),
        ('steps=""', ["changes sets steps to nothing"]),
        ("steps=10 20", ['changes has "20", which is no setting: write name=value']),
        ("targets=all linear", ['changes has "linear", which is no setting']),
        ('layer_rules="*attn2*', ["which is no setting"]),
        ("steps 2000", ["which is no setting"]),
        ("stpes=1 steps=x", ["did you mean steps?", "it must be a whole number"]),
    ],
)
def test_what_is_no_setting_is_refused_all_at_once(text: str, problems: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_changes(text)
    assert len(caught.value.problems) == len(problems)
    for sentence in problems:
        assert any(sentence in problem for problem in caught.value.problems), (sentence, caught.value.problems)


def test_of_very_many_names_the_first_are_told() -> None:
    with pytest.raises(InputError) as caught:
        parse_changes(" ".join(f"name_{number}=1" for number in range(500)))
    assert (
        len(caught.value.problems) == 21
        and caught.value.problems[-1] == "changes sets 480 more names that no recipe has."
    )
