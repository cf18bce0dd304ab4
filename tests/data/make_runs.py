"""Makes the run folders that tests/old_runs.py names: `python3 dev.py test tests/data/make_runs.py`.

The folders of an old version are never made again: those of a later one go beside them, under its name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import comfy.model_management
import pytest
from lora_kiln.training import host

import old_runs


@pytest.mark.parametrize("name", old_runs.RECIPES)
def test_make_a_stopped_run(name: str, folders: Path, lora_folder: Path, monkeypatch: pytest.MonkeyPatch):
    data = old_runs.dataset(folders / "pictures")
    with pytest.raises(host.Interrupted):
        old_runs.run(monkeypatch, name, name, data, comfy.model_management.interrupt_current_processing)
    comfy.model_management.interrupt_current_processing(False)
    (made,) = (folders / "output" / "lora_kiln" / name).iterdir()
    for unwanted in ("lock", "owner.json"):  # the process that made it
        (made / unwanted).unlink(missing_ok=True)
    record = json.loads((made / "run.json").read_text("utf-8"))
    record["message"] = record["message"].replace(str(lora_folder), "models/loras")
    (made / "run.json").write_text(json.dumps(record), "utf-8")
    shutil.copytree(made, old_runs.FOLDER / name / made.name)
