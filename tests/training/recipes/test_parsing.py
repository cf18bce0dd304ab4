"""Text of a file -> plain values."""

from __future__ import annotations

from lora_kiln.training.recipes import parsing


def test_yaml_words_are_not_taken_for_truth_values() -> None:
    assert parsing.parse("a: no\nb: true\nc: 12\nd: ~\ne: '1'")[1] == {
        "a": "no", "b": True, "c": 12, "d": None, "e": "1",
    }  # fmt: skip
