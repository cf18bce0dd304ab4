"""What only a GPU can show; left out, and said so, where there is none."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.config import ADAPTERS, LoRAConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.run.recorder import Record
from lora_kiln.training.run.resume import ANEW, CONTINUE
from lora_kiln.training.run.run_recorder import recorded
from lora_kiln.training.run.trainer import Trained, train_lora
from safetensors.torch import load_file

import models
from training_runs import graph_models, interrupt_at

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("lora_folder")]
SIDE = 128
CONFIG = dict(
    rank=8, alpha=8.0, learning_rate=1e-3, steps=20, batch_size=4, seed=3, targets="all linear and convolution"
)
FAMILIES = [models.sd15, models.sdxl]


def run(small: models.Small, previous: str = ANEW, record: Record = recorded, **values) -> Trained:
    generator = torch.Generator().manual_seed(5)
    pictures = tuple(
        Picture(f"{n}", SIDE, SIDE, f"picture number {n}", pixels=torch.rand(SIDE, SIDE, 3, generator=generator))
        for n in range(8)
    )
    data = Dataset(pictures, DatasetSettings(resolution=SIDE, bucket_step=16, shortest_side=32))
    config = LoRAConfig.of(**{**CONFIG, **values})
    return train_lora(graph_models(small), data, config, "test", previous=previous, record=record)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_deterministic_gives_the_same_bits_each_time(make, precision):
    values = dict(precision=precision, deterministic=True, text_encoder_learning_rate=1e-4, gradient_checkpointing=True)
    first, again = run(make(), **values), run(make(), **values)
    assert first.losses == again.losses
    assert all(torch.equal(first.lora[name], again.lora[name]) for name in first.lora)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32(make, adapter, precision):
    exact = run(make(), adapter=adapter, precision="fp32")
    rough = run(make(), adapter=adapter, precision=precision)
    assert rough.losses == pytest.approx(exact.losses, rel=0.05)


RECORDED = [
    dict(),
    dict(precision="fp32"),
    dict(precision="fp16"),
    dict(gradient_accumulation=3),
    dict(gradient_checkpointing=True),
    dict(ema_decay=0.9, scheduler="linear", warmup=5, layer_rules="*attn2* lr=0.5"),
    dict(adapter="dora"),
    dict(adapter="loha"),
    dict(adapter="lokr"),
    dict(optimizer="adafactor"),
]


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("values", RECORDED)
def test_a_recorded_step_gives_what_it_gives_op_by_op(make, values):
    plain, recorded = (run(make(), deterministic=True, cuda_graphs=on, **values) for on in (False, True))
    assert recorded.losses == plain.losses
    assert all(torch.equal(recorded.lora[name], plain.lora[name]) for name in plain.lora)
    assert "op by op" not in recorded.report


def test_what_is_saved_on_the_way_is_what_was_learned_by_then(folders):
    values = dict(deterministic=True, scheduler="constant", save_precision="fp32")
    run(models.sd15(), steps=12, save_every=7, **values)
    saved = load_file(next((folders / "loras").glob("*step000007.safetensors")))
    shorter = run(models.sd15(), steps=7, **values)
    assert saved.keys() == shorter.lora.keys()
    assert all(torch.equal(saved[name], shorter.lora[name]) for name in saved)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_models_are_left_as_they_were(make):
    small = make()
    before = models.state(small)
    run(small, text_encoder_learning_rate=1e-4)
    after = models.state(small)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert models.hooks(small.model.model) == 0


@pytest.mark.parametrize("values", [dict(), dict(ema_decay=0.9, gradient_accumulation=2), dict(optimizer="adafactor")])
def test_a_run_that_goes_on_gives_the_lora_of_one_that_never_stopped(values):
    values = dict(precision="bf16", deterministic=True, steps=8, **values)
    whole = run(models.sd15(), **values)
    with pytest.raises(host.Interrupted):
        run(models.sd15(), record=interrupt_at(4), **values)
    comfy.model_management.interrupt_current_processing(False)
    resumed = run(models.sd15(), previous=CONTINUE, **values)
    assert resumed.losses == whole.losses
    assert all(torch.equal(resumed.lora[name], whole.lora[name]) for name in whole.lora)
