"""Apply LoRA Preview: the grid is drawn as the host draws, and nothing is left on the model."""

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from lora_kiln.nodes.apply_lora_preview import STEPS as STRENGTHS_AND_STEPS
from lora_kiln.nodes.apply_lora_preview import ApplyLoRAPreview, parse_strengths
from lora_kiln.training import host
from lora_kiln.training.adapters.attach import find_targets, make_adapters
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.config import TARGETS, LoRAConfig
from lora_kiln.training.lora.export import as_format, lora_tensors
from lora_kiln.training.lora.lora import LoRAModel
from lora_kiln.training.lora.save import save_lora
from PIL import Image

from models import Small, sd15, state

SIDE, STEPS = 64, 1
DRAWING = dict(
    prompts="a cat", strengths="0, 1", strength=1.0, seed=3, width=SIDE, height=SIDE, steps=STEPS, cfg=2.0,
    negative_prompt="", sampler="euler", scheduler="normal",
)  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Small:
    return sd15()


@pytest.fixture(scope="module")
def lora(small: Small) -> dict[str, torch.Tensor]:
    """A LoRA with random factors."""
    return random_lora(small, 0)


def random_lora(small: Small, seed: int) -> dict[str, torch.Tensor]:
    adapters = make_adapters(find_targets(small.model.model, TARGETS[2]), LoRAConfig.of(rank=4, alpha=4.0).adapter, 0)
    generator = torch.Generator().manual_seed(seed)
    for adapter in adapters.values():
        adapter.up.data = 0.2 * torch.randn(adapter.up.shape, generator=generator)
    return lora_tensors(adapters, host.layer_names(small.model), "fp32")


def output_of(small: Small, lora, **changes):
    with torch.inference_mode():
        return ApplyLoRAPreview.execute(small.model, small.clip, small.vae, lora, **{**DRAWING, **changes})


def preview(small: Small, lora, **changes):
    return output_of(small, lora, **changes).args


def cells(grid: torch.Tensor, columns: int) -> list[torch.Tensor]:
    """The pictures of a grid of one row, from its lower edge up."""
    margin = (grid.shape[2] - columns * SIDE) // (columns + 1)
    bottom = grid.shape[1] - margin
    lefts = [margin + column * (SIDE + margin) for column in range(columns)]
    return [grid[0, bottom - SIDE : bottom, left : left + SIDE] for left in lefts]


def drawn(model, small: Small, seed: int = 3, prompt: str = "a cat") -> torch.Tensor:
    with torch.inference_mode():
        return host.draw(
            model, small.clip, small.vae, prompt, "", seed=seed, width=SIDE, height=SIDE, steps=STEPS, guidance=2.0,
            sampler="euler", scheduler="normal",
        )  # fmt: skip


def assert_same_picture(one: torch.Tensor, other: torch.Tensor, levels: float = 0.6) -> None:
    """Equal but for rounding to levels of 1 / 255."""
    torch.testing.assert_close(one, other, atol=levels / 255, rtol=0)


@pytest.fixture(scope="module")
def shown(small: Small, lora, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """(grid, MODEL, CLIP) of strengths 0 and 1, and 0.5 on the way out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "temp_directory", str(tmp_path_factory.mktemp("temp")))
        yield preview(small, lora, strength=0.5)


def test_strength_0_is_the_model_without_the_lora(shown, small: Small) -> None:
    assert_same_picture(cells(shown[0], 2)[0], drawn(small.model, small))


def test_strength_1_is_the_model_with_the_lora(shown, small: Small, lora) -> None:
    without, with_lora = cells(shown[0], 2)
    assert (without - with_lora).abs().max() > 2 / 255
    assert_same_picture(with_lora, drawn(host.with_lora(small.model, small.clip, lora, 1.0)[0], small))


def test_the_model_that_comes_out_has_the_chosen_strength(shown, small: Small, lora) -> None:
    expected = drawn(host.with_lora(small.model, small.clip, lora, 0.5)[0], small)
    assert_same_picture(drawn(shown[1], small), expected)


def test_each_row_has_its_own_seed(folders: Path, small: Small, lora) -> None:
    grid = preview(small, lora, prompts="a cat\na cat", strengths="0")[0]
    assert_same_picture(cells(grid, 1)[0], drawn(small.model, small, seed=4))


def test_no_prompt_is_an_empty_prompt(folders: Path, small: Small, lora) -> None:
    grid = preview(small, lora, prompts=" \n", strengths="0")[0]
    assert_same_picture(cells(grid, 1)[0], drawn(small.model, small, prompt=""))


def test_the_grid_can_be_drawn_again(folders: Path, shown, small: Small, lora) -> None:
    assert torch.equal(preview(small, lora)[0], shown[0])


def test_weights_stay_bit_for_bit(folders: Path, small: Small, lora) -> None:
    drawn(small.model, small)  # the host puts the weights back when the model without a LoRA is loaded
    before = state(small)
    preview(small, lora, strengths="0.5")
    drawn(small.model, small)
    after = state(small)
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---------------------------------------------------------------- earlier steps of its run

RUN = {"ss_output_name": "fox", "ss_session_id": "fox/1"}


@pytest.fixture
def earlier(folders: Path, small: Small, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What the run of `last` saved after 5 steps, in the folder of LoRAs."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folders)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("loras", None)
    found = random_lora(small, 1)
    save_lora(folders / "fox-step000005.safetensors", found, RUN | {"ss_steps": "5"})
    return found


@pytest.fixture
def last(lora) -> LoRAModel:
    return LoRAModel(lora, RUN | {"ss_steps": "9"}, "fox")


def test_earlier_steps_have_rows_of_their_own(small: Small, earlier, last) -> None:
    output = output_of(small, last, compare=STRENGTHS_AND_STEPS)
    [shown] = output.ui["kiln_preview"]
    assert [(row["step"], row["label"], len(row["pictures"])) for row in shown["rows"]] == [
        (5, "step 5", 2), (0, "step 9", 2),
    ]  # fmt: skip
    first, second = (picture_of(shown, row, 1) for row in (0, 1))
    assert_same_picture(first, drawn(host.with_lora(small.model, small.clip, earlier, 1.0)[0], small), 1.1)
    assert_same_picture(second, drawn(host.with_lora(small.model, small.clip, last, 1.0)[0], small), 1.1)
    assert_same_picture(picture_of(shown, 0, 0), picture_of(shown, 1, 0))  # the model without the LoRA


def test_the_model_that_comes_out_has_the_chosen_step(small: Small, earlier, last) -> None:
    expected = drawn(host.with_lora(small.model, small.clip, earlier, 0.5)[0], small)
    assert_same_picture(drawn(preview(small, last, step=5, strength=0.5)[1], small), expected)


def test_the_file_of_the_chosen_step_is_named(small: Small, earlier, last) -> None:
    [shown] = output_of(small, last, step=5).ui["kiln_preview"]
    assert shown["note"] == "Step 5 of the run is fox-step000005.safetensors in Load LoRA's list."
    assert output_of(small, last).ui["kiln_preview"][0]["note"] == ""


def test_a_lora_file_that_cannot_be_reached_is_no_hindrance(small: Small, earlier, last, folders: Path) -> None:
    (folders / "fox-gone.safetensors").symlink_to(folders / "nowhere.safetensors")
    folder_paths.filename_list_cache.pop("loras", None)
    preview(small, last)
    preview(small, last, compare=STRENGTHS_AND_STEPS)


def test_where_no_step_was_saved_it_is_said(small: Small, earlier, lora) -> None:
    [shown] = output_of(small, LoRAModel(lora, {}, "x"), compare=STRENGTHS_AND_STEPS).ui["kiln_preview"]
    assert len(shown["rows"]) == 1 and "save_every" in shown["note"]


def test_a_step_of_another_run_stops_nothing_and_it_is_said(small: Small, earlier, last) -> None:
    output = output_of(small, last, step=6)
    [shown] = output.ui["kiln_preview"]
    assert "no file of step 6 (it has: 5)" in shown["note"]
    expected = drawn(host.with_lora(small.model, small.clip, last, 1.0)[0], small)
    assert_same_picture(drawn(output.args[1], small), expected)
    assert "has no file" not in output_of(small, last, step=5).ui["kiln_preview"][0]["note"]


def test_choosing_another_strength_draws_nothing_anew(small: Small, earlier, last) -> None:
    before = output_of(small, last)
    after = output_of(small, last, strength=0.3, step=5)
    assert after.ui["images"] == before.ui["images"]  # the very same files
    assert after.ui["kiln_preview"][0]["rows"] == before.ui["kiln_preview"][0]["rows"]
    assert torch.equal(after.args[0], before.args[0])
    assert output_of(small, last, seed=4).ui != before.ui


def picture_of(shown, row: int, column: int) -> torch.Tensor:
    file = shown["rows"][row]["pictures"][column]
    with Image.open(Path(folder_paths.get_temp_directory()) / file["subfolder"] / file["filename"]) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, 0.6, 1.0", [0.0, 0.6, 1.0]),
        ("0 0.5\n1;2", [0.0, 0.5, 1.0, 2.0]),
        (" -1,1e-1 ", [-1.0, 0.1]),
        ("0, 0.5,", [0.0, 0.5]),
        ("1, 1.0, 0.5", [1.0, 0.5]),
    ],
)
def test_strengths_are_numbers_apart(text: str, expected: list[float]) -> None:
    assert parse_strengths(text) == expected


@pytest.mark.parametrize("text", ["", "a lot", "0, one", "0.5.1", "nan", "0, inf", "11"])
def test_strengths_that_are_no_numbers_are_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(InputError, match="strengths holds"):
        parse_strengths(text)
    assert "strengths holds" in str(ApplyLoRAPreview.validate_inputs(strengths=text))
    assert ApplyLoRAPreview.validate_inputs(strengths="0, 1") is True


def test_a_lora_with_diffusers_keys_does_what_it_does_with_kohyas(small: Small, lora) -> None:
    diffusers = as_format(lora, "diffusers", host.layer_names(small.model))
    assert not lora.keys() & diffusers.keys()
    assert torch.allclose(preview(small, diffusers)[0], preview(small, lora)[0], atol=1e-4)


def test_what_is_of_no_layer_of_the_model_is_said(small: Small, lora) -> None:
    strange = {**lora, "lora_unet_nowhere.alpha": torch.tensor(1.0), "bundle_emb.anna.clip_l": torch.ones(2, 4)}
    view = output_of(small, strange, strengths="1").ui["kiln_preview"][0]
    assert "2 entries of the LoRA are of no layer of this model" in view["note"]
    assert "no layer" not in output_of(small, lora, strengths="1").ui["kiln_preview"][0]["note"]
