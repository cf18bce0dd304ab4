"""A LoRA beside its earlier steps: which files are its run's, what is drawn, and what need not be drawn again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.lora.comparison import (
    MOST_STEPS,
    Drawing,
    Row,
    Versions,
    check_size,
    comparison_sheet,
)
from lora_kiln.training.lora.files import read_lora_file
from lora_kiln.training.lora.lora import LoRAModel
from lora_kiln.training.lora.save import save_lora


def facts(step: int, session: str = "fox/20260101-000000", name: str = "fox") -> dict[str, str]:
    return {"ss_output_name": name, "ss_session_id": session, "ss_steps": str(step)}


def tensors(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "lora_unet_a.lora_up.weight": torch.full((4, 2), value),
        "lora_unet_a.lora_down.weight": torch.ones(2, 4),
    }


def write(folder: Path, file: str, metadata: dict[str, str], value: float = 0.0) -> Path:
    return save_lora(folder / file, tensors(value), metadata)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A run's files of steps 100 and 200, and what may lie beside them."""
    made = [
        write(tmp_path, "fox-step000200.safetensors", facts(200), 2.0),
        write(tmp_path, "fox-step000100.safetensors", facts(100), 1.0),
        write(tmp_path, "fox-step000150.safetensors", facts(150, session="fox/20250101-000000")),
        write(tmp_path, "fox-step000900.safetensors", facts(900)),
        write(tmp_path, "fox-odd.safetensors", facts(0) | {"ss_steps": "many"}),
        write(tmp_path, "dog-step000100.safetensors", facts(50, name="dog")),
        tmp_path / "fox-gone.safetensors",
    ]
    (tmp_path / "fox-torn.safetensors").write_bytes(made[0].read_bytes()[:40])
    made.append(tmp_path / "fox-torn.safetensors")
    return {f"sub/{path.name}": path for path in made}


def final(step: int = 300) -> LoRAModel:
    return LoRAModel(tensors(3.0), facts(step), "fox")


def test_only_the_runs_own_earlier_files_are_its_steps(files):
    versions = Versions(final(), files)
    assert list(versions.files) == [100, 200]
    assert versions.chosen() == [100, 200, 0]
    assert [versions.label(step) for step in versions.chosen()] == ["step 100", "step 200", "step 300"]


def test_a_step_is_read_from_its_file_and_0_is_the_lora_itself(files):
    lora = final()
    versions = Versions(lora, files)
    assert versions.at(0) is lora
    assert torch.equal(versions.at(200)["lora_unet_a.lora_up.weight"], torch.full((4, 2), 2.0))


def test_only_steps_that_were_saved_are_known(files):
    versions = Versions(final(), files)
    assert [step for step in (0, 100, 150, 200, 300, 900) if versions.has(step)] == [0, 100, 200, 300]
    assert not Versions(tensors(), files).has(100)


def test_a_name_with_a_folder_is_known_by_its_last_part(tmp_path: Path):
    files = {"people/fox-1": write(tmp_path, "fox-1.safetensors", facts(100, name="people/fox"))}
    assert Versions(LoRAModel(tensors(), facts(300, name="people/fox"), "fox"), files).chosen() == [100, 0]


def test_the_loras_own_step_is_the_lora_itself(files):
    lora = final()
    assert Versions(lora, files).at(300) is lora


@pytest.mark.parametrize(
    ("steps", "prompts", "strengths", "side"), [(8, 9, 6, 64), (1, 1, 401, 64), (1, 10**6, 1, 64), (1, 6, 3, 4096)]
)
def test_what_would_not_fit_into_memory_is_refused_before_anything_is_drawn(steps, prompts, strengths, side):
    drawing = Drawing(0, side, side, 1, 1.0, "", "euler", "normal")
    with pytest.raises(InputError, match="at most 400"):
        check_size(range(steps), ["x"] * prompts, [1.0] * strengths, drawing)
    check_size([0], ["x"] * 4, [1.0] * 6, replace(drawing, width=1024, height=1024))


@pytest.mark.parametrize("missing", ["ss_output_name", "ss_session_id", "ss_steps"])
def test_a_lora_that_does_not_say_its_run_has_no_steps(files, missing: str):
    metadata = {key: value for key, value in facts(300).items() if key != missing}
    assert Versions(LoRAModel(tensors(), metadata, "fox"), files).chosen() == [0]


def test_a_file_read_back_knows_its_run_too(files, tmp_path: Path):
    last = write(tmp_path, "renamed.safetensors", facts(300))
    assert Versions(read_lora_file(last), files).chosen() == [100, 200, 0]


@pytest.mark.parametrize("count", [1, 7, 8, 40])
def test_many_steps_are_thinned_out_evenly(tmp_path: Path, count: int):
    files = {f"fox-{n}": write(tmp_path, f"fox-{n}.safetensors", facts(10 * n)) for n in range(1, count + 1)}
    chosen = Versions(final(1000), files).chosen()
    assert chosen[-1] == 0 and len(chosen) == min(count, MOST_STEPS - 1) + 1
    steps = chosen[:-1]
    assert steps == sorted(set(steps))
    gaps = [after - before for before, after in zip(steps, steps[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 10


def test_the_sheet_names_the_step_where_there_are_several():
    pixels = torch.zeros(64, 64, 3)
    one = [Row(0, "a cat", 0, "step 9", [pixels])]
    several = [Row(0, "a cat", 5, "step 5", [pixels]), *one]
    assert comparison_sheet(several, [1.0]).shape[1] > comparison_sheet(one, [1.0]).shape[1]
