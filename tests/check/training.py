"""Short runs by the pack's own trainer: a tiny SD1.5 of random numbers, drawn from a seed, on four random pictures."""

from __future__ import annotations

import functools
import math
from functools import partial
from typing import Any

from check.disk import held
from check.ground import Ground
from check.outcome import FailedError

STEPS, STOPPED_AT, SIDE = 6, 3, 64
FARTHEST = 0.05
"""by how much, as a share, a loss of a run that was stopped may differ where kernels sum in no fixed order"""


def whole(ground: Ground) -> str:
    """A run while another thread reads its files, as an open page does."""
    from lora_kiln.training.run.records import read_record

    import models

    small = models.sd15()
    before = models.state(small)
    with held(ground.folder / "output") as seen:
        trained = _unstopped(small)
    after = models.state(small)
    if changed := [name for name in before if not bool((before[name] == after[name]).all())]:
        raise FailedError(f"{len(changed)} of {len(before)} weights of the model are not what they were")
    if len(trained.losses) != STEPS or not all(map(math.isfinite, trained.losses)):
        raise FailedError(f"{STEPS} steps gave the losses {trained.losses}")
    (record,) = (ground.folder / "output").rglob("run.json")
    if (state := read_record(record.parent).get("state")) != "finished":
        raise FailedError(f"the run is written down as {state}: its files were read meanwhile")
    if notes := [note for note in trained.report.splitlines() if "could not be written" in note]:
        raise FailedError(notes[0])
    losses = f"loss {trained.losses[0]:.3f} to {trained.losses[-1]:.3f}"
    return f"{STEPS} steps, {losses}, {_base(trained.report)}, its files opened {seen[0]} times meanwhile"


def stopped(ground: Ground) -> str:
    """A run that is stopped, and goes on from its checkpoint."""
    import comfy.model_management
    import torch
    from lora_kiln.training import host
    from lora_kiln.training.run.run_recorder import RunRecorder, recorded

    import models

    class Stopped(RunRecorder):
        def stepped(self) -> None:
            super().stepped()
            if self.progress.step == STOPPED_AT:
                comfy.model_management.interrupt_current_processing()

    unstopped = _unstopped(models.sd15())
    try:
        _trained(models.sd15(), "stopped", record=partial(recorded, recorder=Stopped))
    except host.Interrupted:
        comfy.model_management.interrupt_current_processing(False)
    else:
        raise FailedError("the run was not stopped")
    resumed = _trained(models.sd15(), "stopped")
    if "goes on from step" not in resumed.report.lower():
        raise FailedError("the run began anew: its checkpoint was not there")
    pairs = list(zip(resumed.losses, unstopped.losses, strict=True))
    if max(abs(one - other) / other for one, other in pairs) > FARTHEST:
        raise FailedError(f"the losses are not those of a run that was not stopped: {pairs}")
    is_same = all(torch.equal(resumed.lora[name], unstopped.lora[name]) for name in unstopped.lora)
    return (
        f"went on from step {STOPPED_AT} to {STEPS}, the LoRA is {'the same to the last bit' if is_same else 'close'}"
    )


def _unstopped(small: Any) -> Any:
    """A whole run; the first one's result is kept, since each model is the same."""
    if not _kept:
        _kept.append(_trained(small, "whole"))
    return _kept[0]


_kept: list[Any] = []


def _trained(small: Any, name: str, **options: Any) -> Any:
    """Trains on the model with the settings that most people leave as they are."""
    from lora_kiln.training.config import LoRAConfig
    from lora_kiln.training.run.prepare import Models
    from lora_kiln.training.run.resume import CONTINUE
    from lora_kiln.training.run.trainer import train_lora

    config = LoRAConfig.of(rank=4, alpha=4.0, learning_rate=1e-3, steps=STEPS, batch_size=2, seed=3)
    models = Models(small.model, small.clip, small.vae)
    return train_lora(models, _pictures(), config, name, previous=CONTINUE, **options)


@functools.cache
def _pictures() -> Any:
    import torch
    from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture

    generator = torch.Generator().manual_seed(5)
    pictures = tuple(
        Picture(f"{n}", SIDE, SIDE, f"picture number {n}", pixels=torch.rand(SIDE, SIDE, 3, generator=generator))
        for n in range(4)
    )
    return Dataset(pictures, DatasetSettings(resolution=SIDE, bucket_step=16, shortest_side=32))


def _base(report: str) -> str:
    """The words of a run's report on how it computed."""
    line = next((line for line in report.splitlines() if "prediction" in line), "")
    return line.strip().removeprefix("Base: ")
