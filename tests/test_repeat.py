"""`dev.py repeat`: what it says of runs, and its short form."""

import repeat
from repeat import Result, difference

SAME = Result((1.0, 0.5), "a")


def test_equal_runs_do_not_differ():
    assert difference([SAME] * 3) == ""


def test_it_says_how_many_differ_and_from_which_step_on():
    found = [SAME, SAME, SAME, Result((1.0, 0.5), "b"), Result((1.0, 0.6), "c"), Result((2.0, 0.6), "d")]
    assert difference(found).startswith("3 of 6 runs differ from the most frequent one: ")
    for words in ("1 x in the LoRA alone", "1 x from the loss of step 2 on", "1 x from the loss of step 1 on"):
        assert words in difference(found)


def test_runs_in_processes_of_their_own_are_equal():
    recipe = {**repeat.RECIPE, "precision": "fp32", "steps": 2}
    results = repeat.repeat("sd15", recipe, runs=2, beside=2)
    assert len(results) == 2 and difference(results) == "" and len(results[0].losses) == 2
