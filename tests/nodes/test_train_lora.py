"""Train LoRA: what comes out of the node, going on from a LoRA, the name, and the sheet of samples."""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from lora_kiln.nodes.train_lora import LONGEST_ID, MOST_COLUMNS, TrainLoRA, samples_sheet, workflow_id
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.data.sheets import strength_grid
from lora_kiln.training.run.progress import SamplePicture

from models import Small, sd15, state

pytestmark = pytest.mark.usefixtures("lora_folder")
SIDE, STEPS = 64, 2
RECIPE: dict[str, Any] = dict(
    rank=4, alpha=4.0, learning_rate=1e-2, steps=STEPS, precision="fp32", save_precision="fp32"
)


@pytest.fixture(scope="module")
def small() -> Small:
    return sd15()


def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(5)
    pictures = [
        Picture(f"{n}", SIDE, SIDE, f"picture {n}", pixels=torch.rand(SIDE, SIDE, 3, generator=generator))
        for n in range(2)
    ]
    return Dataset(tuple(pictures), DatasetSettings(resolution=SIDE))


def executed(small: Small, name: str = "mine", start=None, **changes):
    config = LoRAConfig.of(**{**RECIPE, **changes})
    with torch.inference_mode():
        return TrainLoRA.execute(small.model, small.clip, small.vae, dataset(), config, name, start)


def drawn(model, clip, vae) -> torch.Tensor:
    with torch.inference_mode():
        return host.draw(
            model, clip, vae, "a cat", "", seed=3, width=SIDE, height=SIDE, steps=2, guidance=2.0, sampler="euler",
            scheduler="normal",
        )  # fmt: skip


def sample(step: int, prompt: str = "a") -> SamplePicture:
    """A picture in a red of its own."""
    return SamplePicture(step, prompt, torch.tensor([(step + 1) / 255, 0.0, 0.0]).expand(8, 8, 3))


def test_every_output_holds_what_it_says(small: Small) -> None:
    before = state(small)
    lora, model, clip, loss_map, samples, report = executed(small, text_encoder_learning_rate=1e-2).args

    assert lora.name == "mine" and any("lora_te" in key for key in lora)
    with_lora = drawn(model, clip, small.vae)
    host_model, host_clip = comfy.sd.load_lora_for_models(small.model, small.clip, dict(lora), 1.0, 1.0)
    assert torch.equal(with_lora, drawn(host_model, host_clip, small.vae))
    assert not torch.equal(with_lora, drawn(small.model, small.clip, small.vae))
    assert list(loss_map) == ["loss"] and len(loss_map["loss"]) == STEPS
    assert isinstance(samples, ExecutionBlocker)
    assert report.startswith("LoRA mine:") and f"Steps: {STEPS}" in report

    after = state(small)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_samples_come_out_and_are_left_to_the_nodes_own_view(small: Small, folders: Path) -> None:
    output = executed(small, sample_every=1, sample_prompts=("a cat", "a dog"), sample_steps=1)
    sheet = output.args[4]
    empty = [torch.zeros(SIDE, SIDE, 3)] * (STEPS + 1)
    assert sheet.shape == strength_grid([("a cat", empty), ("a dog", empty)], ["", "", ""]).shape
    assert output.ui is None  # a second sheet would take half of the node from the view, which has them
    assert len(list((folders / "output" / "lora_kiln").rglob("samples/*.png"))) == 2 * (STEPS + 1)


def test_a_run_goes_on_from_its_start(small: Small) -> None:
    first = executed(small).args[0]
    still = executed(small, start=first, rank=9, learning_rate=1e-12, weight_decay=0.0).args[0]
    assert still.keys() == first.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(still[name], tensor, atol=1e-9, rtol=0)
    further = executed(small, start=first).args[0]
    assert any(not torch.equal(further[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a\\b", "", " "])
def test_a_name_outside_the_folder_is_refused_before_the_run_and_in_it(small: Small, name: str) -> None:
    said = TrainLoRA.validate_inputs(name)
    assert isinstance(said, str) and "name is" in said
    with pytest.raises(InputError, match="name is"):
        executed(small, name)


@pytest.mark.parametrize("name", ["mine", "people/anna", None])
def test_a_usual_name_is_taken(name: str | None) -> None:
    assert TrainLoRA.validate_inputs(name) is True


def test_a_date_in_the_name_is_filled_in(small: Small) -> None:
    assert TrainLoRA.validate_inputs("%date:yyyy-MM-dd%/anna") is True
    assert "%date:" in str(TrainLoRA.validate_inputs("%date:yyyy-MM-dd"))
    before = time.strftime("%Y-%m-%d/anna")
    lora = executed(small, "%date:yyyy-MM-dd%/anna").args[0]
    assert lora.name in (before, time.strftime("%Y-%m-%d/anna"))


def test_the_sheet_has_a_row_a_prompt_and_a_column_a_step() -> None:
    samples = [sample(step, prompt) for step in (0, 5) for prompt in ("a", "b")]
    rows = [(prompt, [sample(step).pixels for step in (0, 5)]) for prompt in ("a", "b")]
    assert torch.equal(samples_sheet(samples), strength_grid(rows, ["step 0", "step 5"]))


def test_a_long_run_is_thinned_out_evenly_and_keeps_its_ends() -> None:
    red, *others = samples_sheet([sample(step) for step in range(100)])[0].unbind(-1)
    is_picture = (others[0] == 0) & (others[1] == 0) & (red > 0)
    steps = [round(float(value) * 255) - 1 for value in red[is_picture].unique()]
    assert len(steps) == MOST_COLUMNS and (steps[0], steps[-1]) == (0, 99)
    assert {after - before for before, after in pairwise(steps)} == {9}


@pytest.mark.parametrize(
    ("sent", "known"),
    [
        ({"workflow": {"id": "aaaa"}}, "aaaa"),
        ({"workflow": {"id": "00000000-0000-0000-0000-000000000000"}}, ""),  # of a workflow that was cleared
        ({"workflow": {"id": "a" * (LONGEST_ID + 1)}}, ""),
        ({"workflow": {"id": 7}}, ""),
        ({"workflow": []}, ""),
        (None, ""),
    ],
)
def test_a_workflow_without_an_id_of_its_own_has_none(sent: Any, known: str) -> None:
    assert workflow_id(sent) == known
