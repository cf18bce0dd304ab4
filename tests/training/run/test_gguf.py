"""Whole runs on a GGUF base: trained, gone on with, saved and merged like any other."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from lora_kiln.training import host
from lora_kiln.training.lora.export import as_format
from lora_kiln.training.lora.merge import Part, merge_loras
from lora_kiln.training.run.prepare import Models
from lora_kiln.training.run.recorder import Record
from lora_kiln.training.run.resume import CONTINUE
from lora_kiln.training.run.run_recorder import recorded
from lora_kiln.training.run.trainer import Trained, train_lora

import gguf_base
import models
from training_runs import assert_same, changed, dataset, interrupt_at, watched

pytestmark = pytest.mark.usefixtures("lora_folder")
CONFIG = changed(steps=1, targets="attention, feed-forward and convolutions", save_precision="fp32")


def run(small: models.Small, model: object, start=None, **values) -> Trained:
    given = Models(model, small.clip, small.vae)
    return train_lora(given, dataset(), CONFIG.changed(**values), "test", start=start)


def test_a_run_is_that_on_the_unpacked_weights_and_its_lora_is_complete(tmp_path):
    small = models.sd15()
    packed = gguf_base.loaded(small.model, tmp_path, "Q8_0")
    with torch.inference_mode():  # as the host runs nodes
        first, plain = run(small, packed), run(small, gguf_base.plain(packed))
        assert first.losses == plain.losses
        assert first.lora.keys() == plain.lora.keys()
        again = run(small, packed, start=first.lora)
    assert again.lora.keys() == first.lora.keys()
    assert "stay as they are" not in again.report
    names = host.layer_names(packed)
    in_diffusers = as_format(first.lora, "diffusers", names, "as trained")
    parts = [Part(dict(in_diffusers), 0.5, "lora_1"), Part(dict(again.lora), 0.5, "lora_2")]
    merged = merge_loras(parts, 0, names.values())
    assert len(merged.lora) == len(first.lora)


def test_a_run_that_stopped_goes_on(tmp_path):
    small = models.sd15()

    def go(name: str, record: Record = recorded) -> Trained:
        again = gguf_base.loaded(small.model, tmp_path, "Q4_0")  # as after a restart
        given = Models(again, small.clip, small.vae)
        return train_lora(given, dataset(), changed(steps=2), name, previous=CONTINUE, record=record)

    whole = go("whole")
    with pytest.raises(host.Interrupted):
        go("parts", interrupt_at(1))
    comfy.model_management.interrupt_current_processing(False)
    steps: list[int] = []
    assert_same(go("parts", watched(lambda recorder: steps.append(recorder.progress.step))), whole)
    assert steps == [2]


def test_fp8_says_which_weights_stay_packed(tmp_path):
    small = models.flux()
    packed = gguf_base.loaded(small.model, tmp_path, "Q8_0")
    report = run(small, packed, targets="attention", base_precision="fp8").report
    assert "linear weights in fp8" not in report
    assert "base_precision is fp8, but these linear weights stay as they are loaded: 26 in GGUF Q8_0." in report
    mixed = gguf_base.loaded(small.model, tmp_path, "Q8_0", whole="txt_mlp")
    report = run(small, mixed, targets="attention", base_precision="fp8").report
    assert "4 of the blocks' 26 linear weights in fp8" in report
    assert "stay as they are loaded: 22 in GGUF Q8_0." in report
