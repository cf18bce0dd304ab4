"""Apply LoRA Preview: the grid is drawn as the host draws, and nothing is left on the model."""

from collections.abc import Iterator
from pathlib import Path

import folder_paths
import pytest
import torch
from lora_kiln.nodes.apply_lora_preview import ApplyLoRAPreview, parse_strengths
from lora_kiln.training import host
from lora_kiln.training.attach import find_targets, make_adapters
from lora_kiln.training.config import TARGETS, LoRAConfig
from lora_kiln.training.export import as_format, lora_tensors
from lora_kiln.training.problems import InputError

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
    adapters = make_adapters(find_targets(small.model.model, TARGETS[2]), LoRAConfig(rank=4, alpha=4.0))
    generator = torch.Generator().manual_seed(0)
    for adapter in adapters.values():
        adapter.up.data = 0.2 * torch.randn(adapter.up.shape, generator=generator)
    return lora_tensors(adapters, host.layer_names(small.model), "fp32")


def preview(small: Small, lora, **changes):
    with torch.inference_mode():
        output = ApplyLoRAPreview.execute(small.model, small.clip, small.vae, lora, **{**DRAWING, **changes})
    return output.args


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


def assert_same_picture(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=0.6 / 255, rtol=0)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, 0.6, 1.0", [0.0, 0.6, 1.0]),
        ("0 0.5\n1;2", [0.0, 0.5, 1.0, 2.0]),
        (" -1,1e-1 ", [-1.0, 0.1]),
        ("0, 0.5,", [0.0, 0.5]),
    ],
)
def test_strengths_are_numbers_apart(text: str, expected: list[float]) -> None:
    assert parse_strengths(text) == expected


@pytest.mark.parametrize("text", ["", "a lot", "0, one", "0.5.1", "nan", "0, inf"])
def test_strengths_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="strengths holds"):
        parse_strengths(text)


def test_a_lora_with_diffusers_keys_does_what_it_does_with_kohyas(small: Small, lora) -> None:
    diffusers = as_format(lora, "diffusers", host.layer_names(small.model))
    assert not lora.keys() & diffusers.keys()
    assert torch.allclose(preview(small, diffusers)[0], preview(small, lora)[0], atol=1e-4)
