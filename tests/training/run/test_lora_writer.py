"""The LoRA of a run, as a file on the way."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from training_runs import changed, run


def test_save_every_writes_files_on_the_way(lora_folder: Path):
    trained = run(changed(save_every=2))
    assert sorted(path.name for path in lora_folder.iterdir()) == ["test-step000002.safetensors"]
    assert load_file(lora_folder / "test-step000002.safetensors").keys() == trained.lora.keys()
