"""Errors a person can act on."""

import pytest
from lora_kiln.training.basics.errors import InputError, raise_if_any


def test_no_problem_raises_nothing() -> None:
    raise_if_any("Node", [])


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        raise_if_any("Node", ["one is wrong.", "two is wrong."])
    assert str(caught.value) == "Node cannot be used:\n- one is wrong.\n- two is wrong."


def test_the_parts_stay_at_hand() -> None:
    error = InputError("Node", ["one", "two"])
    assert (error.subject, error.problems) == ("Node", ("one", "two"))
