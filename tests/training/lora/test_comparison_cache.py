"""A comparison that was drawn is used again while its inputs are the same."""

import gc
import weakref
from typing import Any

from lora_kiln.training.lora.comparison_cache import LastDrawn


class Thing:
    """What stands for a MODEL here: an object."""


def test_what_was_drawn_is_found_for_the_same_objects_and_settings_only():
    last, a, b = LastDrawn(), Thing(), Thing()
    last.keep("1", [a, b], {"seed": 1}, "pictures")
    assert last.find("1", [a, b], {"seed": 1}) == "pictures"
    assert last.find("2", [a, b], {"seed": 1}) is None
    assert last.find("1", [b, a], {"seed": 1}) is None
    assert last.find("1", [a], {"seed": 1}) is None
    assert last.find("1", [a, b], {"seed": 2}) is None


def test_what_was_drawn_keeps_nothing_alive_and_is_bounded():
    last = LastDrawn(nodes=2)
    things: list[Any] = [Thing() for _ in range(4)]
    for number in range(4):
        last.keep(str(number), [things[number]], (), number)
    assert [last.find(str(n), [things[n]], ()) for n in range(4)] == [None, None, 2, 3]
    watched = weakref.ref(things[-1])
    del things
    gc.collect()
    assert watched() is None


def test_a_plain_dict_cannot_be_told_apart_and_is_not_kept():
    last, thing = LastDrawn(), Thing()
    last.keep("1", [thing, {}], (), "pictures")
    assert last.find("1", [thing, {}], ()) is None
