"""Errors a person can act on."""

import pytest
from lora_kiln.training.basics.errors import InputError, problems_of, raise_if_any
from pydantic import BaseModel, ValidationError


def test_no_problem_raises_nothing() -> None:
    raise_if_any("Node", [])


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        raise_if_any("Node", ["one is wrong.", "two is wrong."])
    assert str(caught.value) == "Node cannot be used:\n- one is wrong.\n- two is wrong."


def test_the_parts_stay_at_hand() -> None:
    error = InputError("Node", ["one", "two"])
    assert (error.subject, error.problems) == ("Node", ("one", "two"))


def test_of_very_many_problems_the_first_are_told_also_after_they_are_passed_on() -> None:
    error = InputError("Node", [f"{number} is wrong." for number in range(1000)])
    again = InputError("Recipe", error.problems)
    assert error.problems == again.problems and len(error.problems) == 51
    assert error.problems[-1] == "There are 950 more problems."
    assert len(InputError("Node", ["one"] * 51).problems) == 51


class Part(BaseModel, strict=True):
    size: int


class Whole(BaseModel, strict=True):
    name: str
    parts: list[Part]


def test_what_pydantic_found_is_said_with_field_and_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"name": 7, "parts": [{"size": 1}, {"size": "x" * 1000}, {}]})
    name, size, missing = problems_of(caught.value)
    assert name == "name is 7; it must be a valid string."
    assert (
        size.startswith("parts[1].size is 'xxx") and size.endswith("; it must be a valid integer.") and len(size) < 100
    )
    assert missing == "parts[2].size is missing."
