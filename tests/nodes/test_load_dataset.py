"""Load Dataset, end to end: real files in, the node's own execute, what comes out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.training.basics.errors import InputError
from PIL import Image

from load_dataset_node import RED, RESOLUTION, SIZE, TOLERANCE, assert_color, dataset_of, load, names, pixels_of, save

# ---------------------------------------------------------------- what comes out


def test_pixels_come_as_float_in_their_bucket(pictures: Path) -> None:
    save(pictures)
    pixels = pixels_of(dataset_of())
    assert pixels.shape == (RESOLUTION, RESOLUTION, 3) and pixels.dtype == torch.float32
    assert_color(pixels, RED)


def test_preview_is_one_picture(pictures: Path) -> None:
    save(pictures)
    preview = load().args[1]
    assert preview.dim() == 4 and preview.shape[0] == 1 and preview.shape[3] == 3
    assert 0 <= preview.min() and preview.max() <= 1


def test_preview_shows_the_picture(pictures: Path) -> None:
    save(pictures, color=(255, 0, 255))
    preview = load().args[1][0]
    assert ((preview - torch.tensor([1.0, 0.0, 1.0])).abs().max(-1).values < TOLERANCE).sum() >= RESOLUTION**2


def test_captions_come_a_line_a_picture_with_the_trigger_word(pictures: Path) -> None:
    for name in ("a", "b"):
        save(pictures, f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"picture {name}")
    assert load(trigger_word="zwx").args[2] == "zwx, picture a\nzwx, picture b"


def test_captions_lie_in_caption_files_too(pictures: Path) -> None:
    save(pictures)
    (pictures / "a.caption").write_text("from a caption file")
    assert dataset_of().pictures[0].caption == "from a caption file"


def test_captions_lie_in_metadata_too(pictures: Path) -> None:
    save(pictures, "a.png")
    save(pictures, "b.png")
    lines = [{"file_name": "b.png", "text": "of b"}, {"file_name": "a.png", "text": "of a"}]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [picture.caption for picture in dataset_of().pictures] == ["of a", "of b"]


def test_metadata_in_the_root_names_pictures_in_folders(pictures: Path) -> None:
    save(pictures, "10_cat/a.png")
    (pictures / "metadata.jsonl").write_text(json.dumps({"file_name": "10_cat/a.png", "text": "a cat"}))
    assert dataset_of().pictures[0].caption == "a cat"


def test_a_sidecar_goes_before_metadata(pictures: Path) -> None:
    save(pictures)
    (pictures / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "from metadata"}))
    (pictures / "a.txt").write_text("from the sidecar")
    assert dataset_of().pictures[0].caption == "from the sidecar"


def test_a_broken_metadata_line_is_named_and_the_rest_is_used(pictures: Path) -> None:
    save(pictures)
    (pictures / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "good"}\n{broken')
    dataset = dataset_of()
    assert dataset.pictures[0].caption == "good"
    assert any("line 2" in problem for problem in dataset.problems)


@pytest.mark.parametrize("line", ['"text"', "7", "null", "[]", "{}", '{"file_name": "a.png", "text": 5}'])
def test_a_metadata_line_of_another_kind_is_named(pictures: Path, line: str) -> None:
    save(pictures)
    (pictures / "metadata.jsonl").write_text(line)
    assert any("line 1" in problem for problem in dataset_of().problems)


def test_a_folder_called_10_name_repeats_its_pictures(pictures: Path) -> None:
    save(pictures, "10_cat/a.png")
    save(pictures, "dogs/b.png")
    assert [picture.repeats for picture in dataset_of().pictures] == [10, 1]
    assert [picture.repeats for picture in dataset_of(repeats=3).pictures] == [30, 3]


def test_the_chosen_folder_itself_may_be_called_10_name(folders: Path) -> None:
    save(folders / "input" / "10_cat")
    assert dataset_of("10_cat").pictures[0].repeats == 10


@pytest.mark.parametrize(("size", "bucket"), [((100, 100), (64, 64)), ((200, 100), (80, 48)), ((100, 200), (48, 80))])
def test_a_picture_goes_into_the_bucket_nearest_in_shape(pictures: Path, size, bucket) -> None:
    save(pictures, size=size)
    assert pixels_of(dataset_of()).shape == (bucket[1], bucket[0], 3)


def test_regularisation_pictures_are_marked(folders: Path, pictures: Path) -> None:
    save(pictures)
    save(folders / "input" / "prior", "p.png")
    dataset = dataset_of(regularisation_folder="prior", trigger_word="zwx", prior_loss_weight=0.25)
    assert [picture.is_regularisation for picture in dataset.pictures] == [False, True]
    assert [dataset.caption(0), dataset.caption(1)] == ["zwx", ""]


def test_images_come_from_the_graph(folders: Path) -> None:
    images = [torch.full((2, 64, 64, 3), 0.5), torch.full((1, 48, 80, 3), 0.25)]
    output = load("none", images=images, captions=["a\nb\nc"])
    assert output.args[2] == "a\nb\nc"
    torch.testing.assert_close(pixels_of(output.args[0], 2).mean().item(), 0.25, atol=TOLERANCE, rtol=0)


def test_one_caption_serves_all_images_from_the_graph(folders: Path) -> None:
    assert load("none", images=[torch.zeros(3, 64, 64, 3)], captions=["same"]).args[2] == "same\nsame\nsame"


def test_another_number_of_captions_than_images_is_refused(folders: Path) -> None:
    with pytest.raises(InputError, match="2 lines for 3 pictures"):
        load("none", images=[torch.zeros(3, 64, 64, 3)], captions=["a", "b"])


def test_images_from_the_graph_join_a_folder(pictures: Path) -> None:
    save(pictures)
    assert names(dataset_of(images=[torch.zeros(1, 64, 64, 3)])) == ["a.png", "image 1"]


def test_transparent_images_from_the_graph_lie_on_white(folders: Path) -> None:
    assert_color(pixels_of(dataset_of("none", images=[torch.zeros(1, 64, 64, 4)])), (255, 255, 255))


def test_a_caption_of_several_lines_is_one_line_of_the_output(pictures: Path) -> None:
    for name in ("a", "b"):
        save(pictures, f"{name}.png")
        (pictures / f"{name}.txt").write_text(f"first of {name}\n\nsecond of {name}\n")
    lines = load().args[2]
    assert lines == "first of a second of a\nfirst of b second of b"
    images = torch.zeros(2, 64, 64, 3)
    assert load("none", images=[images], captions=[lines]).args[2] == lines


# ---------------------------------------------------------------- masks


def summary(monkeypatch: pytest.MonkeyPatch, folder: str = "set", **settings) -> str:
    """What the node shows on itself."""
    from lora_kiln.training import host

    shown: list[str] = []
    monkeypatch.setattr(host, "show_text", shown.append)
    load(folder, **settings)
    return shown[-1]


def save_mask(folder: Path, name: str = "a_mask.png", size=SIZE) -> None:
    """White on the left half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(folder / name)


def test_the_sheet_dims_what_a_mask_leaves_out(pictures: Path) -> None:
    save(pictures, color=(255, 0, 255))
    save_mask(pictures)
    bright = (torch.tensor([1.0, 0.0, 1.0]) - load().args[1][0]).abs().amax(-1) < TOLERANCE
    masked = (torch.tensor([1.0, 0.0, 1.0]) - load(masked_loss=True).args[1][0]).abs().amax(-1) < TOLERANCE
    assert masked.sum() == bright.sum() / 2 > 0


def test_masks_are_counted(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        save(pictures, f"{name}.png")
    save_mask(pictures, "a_mask.png")
    save_mask(pictures, "b-masklabel.png")
    assert "3 pictures" in summary(monkeypatch) and "mask" not in summary(monkeypatch)
    assert "2 of 3 with a mask" in summary(monkeypatch, masked_loss=True)


def test_masks_come_from_the_graph(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linked = dict(images=[torch.ones(2, 64, 64, 3)], masks=[torch.eye(64)[None]])
    data = dataset_of("none", masked_loss=True, **linked)
    assert all(
        torch.equal(each.load_mask(fit), torch.eye(64)) for each, fit in zip(data.pictures, data.fits(), strict=True)
    )
    assert "masks are not used: masked_loss is off" in summary(monkeypatch, "none", **linked)


def test_load_images_empty_mask_is_refused_with_advice(folders: Path) -> None:
    """What the core's Load Image gives for a picture without transparency."""
    with pytest.raises(InputError, match="Invert Mask"):
        load("none", images=[torch.zeros(1, 64, 64, 3)], masks=[torch.zeros(1, 64, 64)])


# ---------------------------------------------------------------- several resolutions, folders' settings


def test_the_summary_names_resolutions_and_settings_files(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(pictures, "cats/a.png")
    (pictures / "cats" / "dataset.toml").write_text('trigger_word = "zwx"')
    said = summary(monkeypatch, extra_resolutions="96")
    assert "resolutions: 64, 96" in said and "settings from set/cats/dataset.toml" in said
    assert load().args[2] == "zwx"


def test_a_settings_file_that_is_wrong_stops_the_node(pictures: Path) -> None:
    save(pictures)
    (pictures / "dataset.toml").write_text("repeat = 3")
    with pytest.raises(InputError, match="set/dataset.toml: repeat is not known; did you mean repeats"):
        load()


def test_a_folder_for_regularisation_may_lie_in_the_chosen_one(pictures: Path) -> None:
    save(pictures, "a.png")
    save(pictures, "prior/b.png")
    (pictures / "prior" / "dataset.toml").write_text("regularisation = true")
    assert [picture.is_regularisation for picture in dataset_of().pictures] == [False, True]


# ---------------------------------------------------------------- older workflows

FIRST_INPUTS = (
    "folder images captions resolution trigger_word flip shuffle_tags keep_tokens caption_dropout repeats bucket_step "
    "shortest_side longest_side regularisation_folder prior_loss_weight bad_pictures"
).split()


def test_new_inputs_come_after_those_of_older_workflows_and_may_be_left_out(folders: Path) -> None:
    inputs = LoadDataset.define_schema().inputs
    assert [each.id for each in inputs[: len(FIRST_INPUTS)]] == FIRST_INPUTS
    new = inputs[len(FIRST_INPUTS) :]
    assert len(new) == 6 and all(each.optional for each in new)


# ---------------------------------------------------------------- a second time


def test_pictures_are_decoded_once_and_not_again_after_a_restart(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_kiln.training.data import cache

    for name in "abc":
        os.utime(save(pictures, f"{name}.png"), (1, 1))
    decoded, read = [], cache.picture_facts
    monkeypatch.setattr(cache, "picture_facts", lambda path: decoded.append(path.name) or read(path))
    first = dataset_of()
    assert decoded == ["a.png", "b.png", "c.png"]
    assert dataset_of() == first and len(decoded) == 3


def test_without_a_cache_it_reads_all_the_same(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(pictures)
    with_cache = dataset_of()
    monkeypatch.setenv("LORA_KILN_CACHE_GB", "0")
    assert dataset_of() == with_cache


# ---------------------------------------------------------------- settings and buckets


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("resolution", 0),
        ("bucket_step", 7),
        ("caption_dropout", 1.5),
        ("prior_loss_weight", -1.0),
        ("keep_tokens", -1),
        ("shortest_side", 256),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(pictures: Path, setting: str, value) -> None:
    save(pictures)
    with pytest.raises(InputError, match=setting):
        load(**{setting: value})


def test_no_bucket_side_lies_outside_the_limits(pictures: Path) -> None:
    save(pictures, size=(100, 100))
    pixels = pixels_of(dataset_of(resolution=256, longest_side=128))
    assert max(pixels.shape[:2]) <= 128
