"""Text of several name=value: where it is cut."""

from __future__ import annotations

import pytest
from lora_kiln.training.basics.name_values import LISTED, SPACED, cut_settings


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" \n ", []),
        ("a=1", ["a=1"]),
        ("betas=0.9,0.99 eps=1e-8", ["betas=0.9,0.99", "eps=1e-8"]),
        ("a = 1\n b =\t2", ["a = 1", "b =\t2"]),
        ("betas=(0.9, 0.99) eps=1", ["betas=(0.9, 0.99)", "eps=1"]),
        ("words a=1", ["words", "a=1"]),
        ("a=b=c", ["a=b=c"]),
        ("a=1,b=2", ["a=1,b=2"]),
        ("= 1 a=2", ["= 1", "a=2"]),
        ("a b", ["a b"]),
    ],
)
def test_white_space_lies_between_two(text: str, parts: list[str]) -> None:
    assert cut_settings(text) == cut_settings(text, SPACED) == parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a=1,b=(2, 3)", ["a=1,", "b=(2, 3)"]),
        ("weight_decay=0.1, betas=0.9,0.99", ["weight_decay=0.1,", "betas=0.9,0.99"]),
        ("a=1 b=2", ["a=1", "b=2"]),
        ("a=1,2=3", ["a=1,2=3"]),
    ],
)
def test_commas_may_lie_between_two(text: str, parts: list[str]) -> None:
    assert cut_settings(text, LISTED) == parts
