"""A run bounded to a part of the GPU, as under Windows, on each allocator; left out, and said so, without a GPU."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from typing import Any

import comfy.model_management
import pytest
import torch
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.host import memory_bound

import models
from host import PACK
from training_runs import assert_untouched, changed, run, watched

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("lora_folder")]
SIDE, BATCH = 768, 8
SHARES = (0.8, 0.65, 0.5, 0.35)
"""of the memory that the recipe takes as it is"""
STEPS_DOWN = "does not fit into the GPU's memory as it is"


def pictures() -> Dataset:
    generator = torch.Generator().manual_seed(5)
    made = [
        Picture(f"{n}", SIDE, SIDE, f"picture number {n}", pixels=torch.rand(SIDE, SIDE, 3, generator=generator))
        for n in range(BATCH)
    ]
    return Dataset(tuple(made), DatasetSettings(resolution=SIDE, bucket_step=64, shortest_side=32))


def from_its_training_on(recorder: Any, phase: str, message: str) -> None:
    if phase == "loading":
        torch.cuda.reset_peak_memory_stats()


def test_fitting_steps_down_within_the_bound_and_all_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    device = comfy.model_management.get_torch_device()
    print(f"allocator: {torch.cuda.get_allocator_backend()}")
    small, data = models.sd15(), pictures()
    config = changed(steps=2, batch_size=BATCH, cuda_graphs=False, checkpoint_minutes=60.0)
    before = models.state(small)
    whole = run(config, "whole", small=small, data=data, record=watched(shown=from_its_training_on))
    assert STEPS_DOWN not in whole.report
    most, fraction = torch.cuda.max_memory_allocated(device), memory_bound._fraction(device)
    trained = whole
    for share in SHARES:

        def all_but_the_share(share: float = share) -> float:
            free, _ = torch.cuda.mem_get_info(device)
            return torch.cuda.memory_reserved(device) + free - share * most

        gc.collect()
        torch.cuda.empty_cache()
        with monkeypatch.context() as patched:
            patched.setattr(memory_bound, "overflows", lambda: True)
            patched.setattr(memory_bound, "reserve", all_but_the_share)
            small = models.sd15()
            before = models.state(small)
            trained = run(config, f"part_{share * 100:.0f}", small=small, data=data)
        assert memory_bound._fraction(device) == pytest.approx(fraction)
        torch.empty(2 * most, dtype=torch.uint8, device=device)  # far more than the bound was
        assert_untouched(small, before)
        if STEPS_DOWN in trained.report:
            break
    assert STEPS_DOWN in trained.report
    assert trained.losses == pytest.approx(whole.losses, rel=1e-2)


def test_the_same_on_cudas_own_allocator() -> None:
    test = f"{__file__}::{test_fitting_steps_down_within_the_bound_and_all_is_as_before.__name__}"
    environ = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, env=environ, cwd=PACK, capture_output=True, text=True, timeout=900)
    told = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0 and "1 passed" in done.stdout, told
    assert "allocator: cudaMallocAsync" in done.stdout, told
