"""Dates in names, as the host's save nodes and its page fill them in."""

from __future__ import annotations

import time
from pathlib import Path

import folder_paths
import pytest
from lora_kiln.training.basics.dates import with_dates

NOW = time.struct_time((2026, 3, 9, 7, 5, 30, 0, 68, 0))


@pytest.mark.parametrize(
    ("name", "filled"),
    [
        ("people/anna", "people/anna"),
        ("%year%-%month%-%day%/anna_%hour%%minute%%second%", "2026-03-09/anna_070530"),
        ("%date:yyyy-MM-dd%/anna", "2026-03-09/anna"),
        ("%date:yyyy/MM/dd%", "2026/03/09"),
        ("anna %date:d.M.yy hhmmss%", "anna 9.3.26 070530"),
        ("%date:h-m-s yyy%", "7-5-30 yyy"),
        ("%date:%", "%date:%"),
        ("100% %seed% %KSampler.seed% %width%", "100% %seed% %KSampler.seed% %width%"),
        ("%year%%date:yyyy%", "20262026"),
    ],
)
def test_dates_take_the_place_of_their_words(name: str, filled: str) -> None:
    assert with_dates(name, NOW) == filled


def test_the_hosts_own_words_give_what_the_host_gives(tmp_path: Path) -> None:
    name = "%year%-%month%-%day%-%hour%-%minute%"
    before = time.localtime()
    theirs = folder_paths.get_save_image_path(name, str(tmp_path))[1]
    assert theirs in (with_dates(name, before), with_dates(name, time.localtime()))
