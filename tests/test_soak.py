"""The short form of `dev.py soak`: the real server killed in the middle of a run, and the run that goes on."""

from pathlib import Path

import soak

SEED = 6
"""of a kill when some steps are done"""


def test_a_killed_run_goes_on_and_gives_the_same_lora(host_dir: Path, tmp_path: Path, kit_dir: Path):
    figures = soak.soak(host_dir, tmp_path, kit_dir, kills=1, seed=SEED)
    assert (figures.kills, figures.runs, figures.went_on) == (1, 1, 1)
    assert figures.wrong == []
