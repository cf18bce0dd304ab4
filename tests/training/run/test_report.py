"""The report's lines, the notes on settings without effect, and what a file says about the pictures."""

import pytest
import torch
from lora_kiln.training.adapters import new_adapter
from lora_kiln.training.config import LoRAConfig
from lora_kiln.training.data.dataset import Dataset, DatasetSettings, Picture
from lora_kiln.training.data.folder_settings import FolderSettings
from lora_kiln.training.run.report import data_facts, notes_about, run_report
from torch import nn

CPU = torch.device("cpu")
SETTINGS = DatasetSettings(resolution=64, bucket_step=16, shortest_side=32)
PICTURES = (
    Picture("3_cat/a.png", 64, 64, "cat, red, red", repeats=3),
    Picture("3_cat/b.png", 64, 64, "cat, blue", repeats=3),
    Picture("c.png", 96, 48, "a dog"),
    Picture("pets/d.png", 64, 64, "", is_regularisation=True),
)


def report(config: LoRAConfig | None = None, pictures=PICTURES, losses=(0.5, 0.25), notes=()) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    adapters = {
        f"{name}.weight": new_adapter("lora", nn.Linear(6, 4), 2, 1.0, generator, -1)
        for name in ("diffusion_model.a", "diffusion_model.b", "clip_l.c")
    }
    config = config or LoRAConfig.of(rank=2, alpha=1.0, seed=9, batch_size=2)
    data = Dataset(tuple(pictures), SETTINGS)
    return run_report(
        name="mine", config=config, dataset=data, adapters=adapters, losses=losses, seconds=4.0,
        base="sdxl, eps prediction", device=CPU, notes=notes,
    ).split("\n")  # fmt: skip


def test_the_report_has_a_line_a_subject() -> None:
    lora, base, data, steps, loss = report()
    parts = ("LoRA mine:", "lora on 2 layers, 40 parameters", "lora on 1 layer, 20 parameters in the text encoders")
    assert all(part in lora for part in (*parts, "rank 2, alpha 1", "seed 9"))
    assert base == "Base: sdxl, eps prediction"
    assert data == "Data: 3 pictures and 1 for regularisation; buckets 64 x 64: 3, 80 x 48: 1"
    assert steps == "Steps: 2 of batch 2 in 4 s, 0.50 steps a second, preparation included"
    assert loss.startswith("Loss: 0.2500 on average over the last 1 steps, 0.5000 over the first")


def test_the_loss_is_the_mean_of_a_tenth_of_the_steps_at_each_end() -> None:
    loss = report(losses=[1.0, 3.0, *[100.0] * 16, 0.25, 0.75])[4]
    assert loss == "Loss: 0.5000 on average over the last 2 steps, 2.0000 over the first"


def test_regularisation_and_accumulation_are_said_where_there_are_any() -> None:
    lines = report(LoRAConfig.of(gradient_accumulation=4), PICTURES[:1])
    assert lines[2] == "Data: 1 pictures; buckets 64 x 64: 1"
    assert "of batch 1 x 4 in" in lines[3]


def test_convolutions_of_another_rank_are_said() -> None:
    assert "convolutions rank 4, alpha 8" in report(LoRAConfig.of(rank=16, alpha=8.0, conv_rank=4))[0]
    assert "convolutions" not in report(LoRAConfig.of(rank=16))[0]


def test_notes_and_enlarged_pictures_come_last() -> None:
    lines = report(pictures=(Picture("small.png", 32, 32),), notes=["first.", "second."])
    assert lines[-3].startswith("Note: enlarged to fit their bucket: small.png is 32 x 32, trained at 64 x 64")
    assert lines[-2:] == ["Note: first.", "Note: second."]


def test_an_empty_run_has_a_report_too() -> None:
    assert "Steps: 0" in report(losses=())[3]


# ---------------------------------------------------------------- settings without effect


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@pytest.mark.parametrize("has_convolutions", [True, False])
def test_the_default_recipe_needs_no_note(prediction: str, has_convolutions: bool) -> None:
    assert notes_about(LoRAConfig(), prediction, has_convolutions) == []


IDLE = [
    (dict(min_snr_gamma=5.0), dict(prediction="flow"), dict(prediction="eps")),
    (dict(debiased_estimation=True), dict(prediction="flow"), dict(prediction="v")),
    (dict(timestep_shift=3.0), dict(prediction="eps"), dict(prediction="flow")),
    (dict(timestep_shift=3.0), dict(timestep_sampling="uniform"), dict(timestep_sampling="shift")),
    (dict(logit_mean=0.5), dict(prediction="eps"), dict(prediction="flow")),
    (dict(logit_std=0.5), dict(timestep_sampling="uniform"), dict(timestep_sampling="logit_normal")),
    (dict(conv_rank=4), dict(has_convolutions=False), dict(has_convolutions=True)),
    (dict(conv_alpha=4.0), dict(has_convolutions=False), dict(has_convolutions=True)),
    (dict(lokr_factor=8), dict(adapter="lora"), dict(adapter="lokr")),
    (dict(huber_c=0.2), dict(loss="l2"), dict(loss="huber")),
    (dict(huber_schedule="constant"), dict(loss="l2"), dict(loss="smooth_l1")),
    (dict(multires_noise_discount=0.5), {}, dict(multires_noise_iterations=6)),
]
"""A setting, a run in which it has no effect, and one in which it has."""


def notes(prediction: str = "eps", has_convolutions: bool = True, **values) -> list[str]:
    return notes_about(LoRAConfig.of(**values), prediction, has_convolutions)


@pytest.mark.parametrize(("setting", "without", "with_effect"), IDLE)
def test_a_setting_without_effect_is_named_and_one_with_effect_is_not(setting, without, with_effect) -> None:
    (name,) = setting
    assert [note.split()[0] for note in notes(**setting, **without)] == [name]
    assert [note for note in notes(**setting, **with_effect) if note.startswith(name)] == []


def test_what_a_person_must_do_is_said() -> None:
    assert "ModelSamplingDiscrete" in notes("v", zero_terminal_snr=True)[0]
    assert "cosine" in notes(optimizer="schedule_free")[0]
    assert notes(optimizer="schedule_free", scheduler="constant") == []
    assert "strength of an OFT file" in notes(adapter="oft")[-1]


# ---------------------------------------------------------------- what the file says


def test_folders_are_told_apart_with_their_repeats_and_tags() -> None:
    facts = data_facts(Dataset(PICTURES, SETTINGS, "animals"))
    folders = [(each.name, each.pictures, each.repeats, each.is_regularisation) for each in facts.folders]
    assert folders == [("3_cat", 2, 3, False), ("animals", 1, 1, False), ("pets", 1, 1, True)]
    assert dict(facts.folders[0].tags or {}).keys() == {"cat", "red", "blue"}
    assert (facts.folders[0].tags or {})["cat"] == 2
    assert facts.folders[1].tags == {"a dog": 1}
    assert not facts.folders[2].tags
    assert facts.buckets == {(64, 64): 3, (80, 48): 1}


def test_the_settings_are_those_of_the_data() -> None:
    settings = DatasetSettings(
        resolution=64, extra_resolutions="128", bucket_step=16, shortest_side=32, trigger_word="ohwx", flip=True,
        random_crop=True, shuffle_tags=True, keep_tokens=2, tag_dropout=0.1, caption_dropout=0.2, masked_loss=True,
        prior_loss_weight=0.5,
    )  # fmt: skip
    facts = data_facts(Dataset(PICTURES, settings))
    names = ("trigger_word", "flip", "random_crop", "shuffle_tags", "keep_tokens", "tag_dropout", "caption_dropout")
    for name in (*names, "masked_loss", "prior_loss_weight"):
        assert getattr(facts, name) == getattr(settings, name), name
    assert facts.resolution == 128


def test_settings_of_a_folder_count_where_most_pictures_have_them() -> None:
    own = FolderSettings(trigger_word="sks", flip=True)
    pictures = [Picture(f"cats/{n}.png", 64, 64, folder=own) for n in range(2)] + [Picture("x.png", 64, 64)]
    prior = [Picture(f"pets/{n}.png", 64, 64, is_regularisation=True) for n in range(5)]
    facts = data_facts(Dataset((*pictures, *prior), SETTINGS))
    assert (facts.trigger_word, facts.flip, facts.shuffle_tags) == ("sks", True, False)
