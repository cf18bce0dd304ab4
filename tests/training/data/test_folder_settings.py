"""dataset.toml: what it may say, and what is said of one that is wrong."""

from dataclasses import fields
from pathlib import Path

import pytest
from lora_kiln.training.data.dataset import DatasetSettings, Picture
from lora_kiln.training.data.folder_settings import KEYS, FolderSettings, read_folder_settings

ALL = """
repeats = 3
regularisation = true
trigger_word = "zwx"
caption_prefix = "photo of "
caption_suffix = ", indoors"
flip = true
random_crop = true
shuffle_tags = true
keep_tokens = 2
tag_dropout = 0.1
caption_dropout = 1
masked_loss = true
unmasked_weight = 0.25
loss_weight = 2.0
"""


def read(folder: Path, text: str) -> tuple[FolderSettings, list[str]]:
    (folder / "dataset.toml").write_text(text, "utf-8")
    return read_folder_settings(folder, "cats/dataset.toml")


def test_every_setting_can_be_said(tmp_path: Path) -> None:
    settings, problems = read(tmp_path, ALL)
    assert not problems and set(settings.set_values()) == set(KEYS)
    assert (settings.repeats, settings.caption_prefix, settings.caption_dropout) == (3, "photo of ", 1.0)


def test_every_setting_is_one_of_the_dataset_or_of_its_pictures() -> None:
    known = {field.name for field in fields(DatasetSettings)} | {field.name for field in fields(Picture)}
    assert set(KEYS) - known == {"regularisation"}


def test_no_file_says_nothing(tmp_path: Path) -> None:
    assert read_folder_settings(tmp_path, "dataset.toml") == (FolderSettings(), [])


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffrepeats = 3")[0].repeats == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 3", "cats/dataset.toml: colour is not known; it may be one of: repeats,"),
        ("keep_token = 3", "cats/dataset.toml: keep_token is not known; did you mean keep_tokens?"),
        ("repeats = 1.5", "cats/dataset.toml: repeats is 1.5; it must be a whole number."),
        ("repeats = true", "cats/dataset.toml: repeats is True; it must be a whole number."),
        ("flip = 1", "cats/dataset.toml: flip is 1; it must be true or false."),
        ('tag_dropout = "0.1"', "cats/dataset.toml: tag_dropout is '0.1'; it must be a number."),
        ("trigger_word = 5", 'cats/dataset.toml: trigger_word is 5; it must be text in "quotes".'),
        ("[flip]\na = 1", "cats/dataset.toml: flip is {'a': 1}; it must be true or false."),
        ("repeats 3", "cats/dataset.toml is not TOML"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    settings, problems = read(tmp_path, text)
    assert settings == FolderSettings() and len(problems) == 1 and said in problems[0]


def test_another_encoding_is_said(tmp_path: Path) -> None:
    (tmp_path / "dataset.toml").write_bytes('trigger_word = "café"'.encode("latin-1"))
    assert "dataset.toml is not UTF-8" in read_folder_settings(tmp_path, "cats/dataset.toml")[1][0]


def test_nearer_settings_go_over_farther_ones() -> None:
    near, far = FolderSettings(flip=False, repeats=2), FolderSettings(flip=True, keep_tokens=0)
    assert near.over(far) == FolderSettings(flip=False, repeats=2, keep_tokens=0)
