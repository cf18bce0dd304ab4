"""Nothing that was computed is lost to a path that Windows does not take: it is refused before anything is computed."""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from lora_kiln.nodes.save_lora import SaveLoRA
from lora_kiln.nodes.train_lora import TrainLoRA
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.data.cache import Cache
from lora_kiln.training.data.uploads import add
from lora_kiln.training.host import Upload
from lora_kiln.training.lora.run_files import LONGEST_END
from lora_kiln.training.lora.save import check_name, save_lora
from lora_kiln.training.run import checkpoints
from lora_kiln.training.run.checkpoints import State
from lora_kiln.training.run.folder import RunFolder
from lora_kiln.training.run.runs import new_run
from PIL import Image

from disk import ShortPaths

TENSORS = {"a": torch.zeros(2)}


def test_a_run_that_opens_can_write_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, name = checkpoints.save_file, "n" * 150
    first = len(str(tmp_path / name / "20261129-000000"))
    outcomes = []
    for longest in range(first - 6, first + 80, 4):
        with ShortPaths(tmp_path, longest) as disk:

            def in_rust(tensors: dict, path: Path, disk: ShortPaths = disk) -> None:
                disk.come(str(path))
                write(tensors, path)

            monkeypatch.setattr(checkpoints, "save_file", in_rust)
            before = sorted(tmp_path.rglob("*"))
            try:
                folder = new_run(tmp_path, name)
            except InputError as error:
                assert "name: a run of this name" in str(error) and "shorter name" in str(error)
                assert sorted(tmp_path.rglob("*")) == before
                outcomes.append(False)
                continue
            with closing(folder):
                assert folder.checkpoint(State(1, TENSORS), 1) and folder.checkpoint(State(1, TENSORS), 1)
                assert folder.write_picture("step000001-1.png", torch.zeros(4, 4, 3))
                folder.record({"state": "finished"})
                folder.log({"step": 1, "loss": 0.5})
                folder.write_owner({})
            assert folder.notes == []
            outcomes.append(True)
    assert outcomes == sorted(outcomes) and set(outcomes) == {True, False}


def test_a_run_whose_folder_was_moved_too_deep_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 150) / "20261129-000000"
    path.mkdir(parents=True)
    with ShortPaths(tmp_path, len(str(path)) + 30), pytest.raises(InputError, match="move ComfyUI"):
        RunFolder(path, tmp_path)


def test_a_lora_whose_name_is_taken_can_be_saved(lora_folder: Path) -> None:
    lora_folder.mkdir()
    name = "n" * 150
    first = len(str(lora_folder / f"{name}.safetensors"))
    outcomes = []
    for longest in range(first - 4, first + 40, 4):
        with ShortPaths(lora_folder, longest):
            outcomes.append((SaveLoRA.validate_inputs(name) is True, TrainLoRA.validate_inputs(name) is True))
            for may_end, end in zip(outcomes[-1], ("", LONGEST_END.removesuffix("_2")), strict=True):
                if may_end:
                    save_lora(lora_folder / f"{name}{end}.safetensors", TENSORS, {})
    assert set(outcomes) == {(False, False), (True, False), (True, True)}
    with ShortPaths(lora_folder, first), pytest.raises(InputError, match="filename is 'n*': the path .* shorter name"):
        check_name(name, "filename", "Save LoRA")


def test_an_upload_leaves_out_what_lies_too_deep(folders: Path) -> None:
    uploads = []
    for number, name in enumerate(("a.png", f"{'b' * 120}.png", f"{'b' * 120}.txt")):
        path = folders / str(number)
        path.write_text("a cat") if name.endswith("txt") else Image.new("RGB", (64, 64)).save(path, "PNG")
        uploads.append(Upload(name, path, True))
    with ShortPaths(folders, 210):
        answer = add({"name": "cats" * 10}, uploads)
    assert answer["pictures"] == 1 and answer["captions"] == 0 and len(answer["refused"]) == 2
    assert "shorter name" in answer["refused"][0] and "no picture of its name" in answer["refused"][1]


def test_a_cache_that_lies_too_deep_says_so(tmp_path: Path) -> None:
    with ShortPaths(tmp_path, 220), Cache(tmp_path / ("c" * 180) / "encoded.sqlite", 10**6) as cache:
        cache.put("key", 1)
        assert cache.get("key") == 1 and "shorter name" in cache.notes[0] and "held in memory" in cache.notes[0]
