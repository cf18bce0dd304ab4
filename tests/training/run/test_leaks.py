"""What runs leave behind in their process: nothing. `dev.py leaks` looks at a real server from outside."""

from __future__ import annotations

import gc
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.run.checkpoints import read_state, write_state
from torch import nn

import models
from training_runs import at_step, changed, run, stopped_at

pytestmark = pytest.mark.usefixtures("lora_folder")
CONFIG = changed(
    steps=2, batch_size=1, checkpoint_minutes=0.0, sample_every=1, sample_prompts=("a",), sample_steps=1,
    validation_share=0.3, validation_every=1,
)  # fmt: skip
WARM_UP, RUNS = 2, 4


def alive(small: models.Small) -> dict[str, Any]:
    """What is there, when all that can go is gone."""
    gc.collect()
    everything = gc.get_objects()
    tensors = [each for each in everything if issubclass(type(each), torch.Tensor)]
    ours = Counter(kind.__name__ for kind in map(type, everything) if str(kind.__module__).startswith("lora_kiln"))
    for kept in ("LiveRun", "Progress", "Controls"):  # the page may ask for the newest of them
        ours.pop(kept, None)
    return {
        "tensors": len(tensors),
        "bytes": sum(each.nbytes for each in tensors),
        "modules": sum(issubclass(type(each), nn.Module) for each in everything),
        "hooks": models.hooks(small.model.model) + models.hooks(small.clip.cond_stage_model),
        "threads": threading.active_count(),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "gpu": torch.cuda.memory_allocated() if torch.cuda.is_available() else 0,
        "ours": ours,
    }


def interrupted() -> None:
    comfy.model_management.interrupt_current_processing()


def failed() -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize("act", [lambda: None, interrupted, failed], ids=["finished", "interrupted", "failed"])
def test_runs_leave_nothing_behind(act: Callable[[], None]):
    small = models.few_blocks()
    found: list[dict[str, Any]] = []
    record = at_step(1, act)
    for number in range(WARM_UP + RUNS):
        try:
            run(CONFIG, f"run_{number}", small=small, record=record)
        except (host.Interrupted, OSError):
            comfy.model_management.interrupt_current_processing(False)
        found.append(alive(small))
    assert all(each == found[WARM_UP] for each in found[WARM_UP:]), found[WARM_UP:]


def test_refused_runs_leave_nothing_behind(folders: Path):
    """Their checkpoint is of no run."""
    small, runs = models.few_blocks(), folders / "output" / "lora_kiln"
    stopped_at(1, CONFIG, "stopped")
    checkpoint = next((runs / "stopped").glob("*/checkpoints/step*"))
    write_state(checkpoint.parent, replace(read_state(checkpoint), facts={}))
    found: list[dict[str, Any]] = []
    for number in range(WARM_UP + RUNS):
        shutil.copytree(runs / "stopped", runs / f"run_{number}")
        with pytest.raises(InputError, match="cannot be continued"):
            run(CONFIG, f"run_{number}", small=small)
        found.append(alive(small))
    assert all(each == found[WARM_UP] for each in found[WARM_UP:]), found[WARM_UP:]
