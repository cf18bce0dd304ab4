"""What holds for every caption, recipe, bucket, name and file, tried on values that hypothesis thinks up."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lora_kiln.training import recipes
from lora_kiln.training.adapters.layer_rules import parse_layer_rules, rule_for
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.basics.paths import PathRefused, check_parts, resolve
from lora_kiln.training.config import FIELDS, PRESETS, LoRAConfig
from lora_kiln.training.data.buckets import CROP_VARIANTS, bucket_sizes, crops, fit_picture
from lora_kiln.training.data.captions import (
    CaptionFileError,
    drop_tags,
    one_line,
    read_metadata,
    read_text,
    shuffle_tags,
    with_trigger,
)
from lora_kiln.training.data.dataset import DatasetSettings
from lora_kiln.training.data.folder_settings import KEYS, read_folder_settings
from lora_kiln.training.lora.files import read_lora_file
from lora_kiln.training.lora.header import header_size, read_header
from lora_kiln.training.lora.metadata import DataFacts, Folder, RunFacts, lora_metadata
from lora_kiln.training.lora.save import check_name, save_lora

# The same examples at each run; a folder may be used by all examples of a test, which write it anew.
often = settings(
    derandomize=True,
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
texts = st.text(max_size=60)
words = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z"), exclude_characters=","), min_size=1, max_size=8)
tag_lists = st.lists(words, max_size=8).map(", ".join)
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400))


# ---------------------------------------------------------------- captions


@often
@given(texts, texts)
def test_a_trigger_word_is_put_in_once(caption: str, trigger: str) -> None:
    once = with_trigger(caption, trigger)
    assert with_trigger(once, trigger) == once
    assert once.endswith(caption) and trigger.strip().lower() in once.lower()


@often
@given(tag_lists, st.integers(0, 9), st.integers())
def test_shuffling_loses_no_tag_and_keeps_the_first(caption: str, kept: int, key: int) -> None:
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    shuffled = [tag for tag in shuffle_tags(caption, kept, key).split(", ") if tag]
    assert sorted(shuffled) == sorted(tags) and shuffled[:kept] == tags[:kept]


@often
@given(tag_lists, st.integers(0, 9), st.floats(0, 1), st.integers())
def test_dropping_tags_adds_none_and_keeps_the_first(caption: str, kept: int, share: float, key: int) -> None:
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    left = [tag for tag in drop_tags(caption, kept, share, key).split(", ") if tag]
    assert left[:kept] == tags[:kept] and len(left) <= len(tags) and set(left) <= set(tags)


@often
@given(texts)
def test_one_line_is_one_line_and_stays_so(caption: str) -> None:
    line = one_line(caption)
    assert len(line.splitlines()) <= 1 and one_line(line) == line.strip()
    assert "".join(line.split()) == "".join("".join(caption.splitlines()).split())


def with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


@often
@given(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=60), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])
)
def test_a_caption_comes_back_from_its_file(tmp_path: Path, caption: str, encoding: str) -> None:
    assume("\0" not in caption and (encoding != "utf-8" or not caption.startswith(("\ufeff", "\ufffe"))))
    (tmp_path / "a.txt").write_bytes(caption.encode(encoding))
    assert read_text(tmp_path / "a.txt") == with_line_feeds(caption).strip()


@often
@given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), texts, max_size=6))
def test_captions_come_back_from_metadata(tmp_path: Path, captions: dict[str, str]) -> None:
    assume("\0" not in "".join(captions.values()))
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in captions.items()]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    assert read_metadata(tmp_path) == ({name: with_line_feeds(text).strip() for name, text in captions.items()}, [])


@often
@given(st.binary(max_size=200))
def test_any_bytes_are_captions_or_problems(tmp_path: Path, data: bytes) -> None:
    for name in ("metadata.jsonl", "dataset.toml", "a.txt"):
        (tmp_path / name).write_bytes(data)
    captions, problems = read_metadata(tmp_path)
    lines = [line for line in data.split(b"\n") if line.strip()]
    assert len(captions) + len(problems) <= max(1, len(lines))
    own, problems = read_folder_settings(tmp_path, "dataset.toml")
    assert not problems or not own.set_values() or set(own.set_values()) < set(KEYS)
    try:
        read_text(tmp_path / "a.txt")
    except CaptionFileError as error:
        assert "a.txt" in str(error)


# ---------------------------------------------------------------- the recipe


CONFIG = FIELDS
TEXTS = ("optimizer_args", "layer_rules", "sample_prompts")


@often
@given(st.sampled_from([name for name in CONFIG if name not in TEXTS]), anything)
def test_a_recipe_is_sound_or_refused_by_the_name_of_the_field(name: str, value: Any) -> None:
    try:
        config = LoRAConfig.of(**{name: value})
    except InputError as error:
        assert name in str(error)
        return
    number = config.flat()[name]
    assert not isinstance(number, float) or math.isfinite(number)


@often
@given(st.sampled_from(list(PRESETS)), st.integers(1, 10_000))
def test_a_warm_up_ends_within_the_run(preset: str, steps: int) -> None:
    config = LoRAConfig.of(**{**PRESETS[preset], "steps": steps})
    assert 0 <= config.optimization.warmup_steps(steps) <= steps


@often
@given(texts, texts)
def test_layer_rules_are_read_or_refused(text: str, name: str) -> None:
    try:
        rules = parse_layer_rules(text)
    except InputError as error:
        assert "layer_rules line" in str(error)
    else:
        assert len(rules) <= len(text.splitlines())
        assert rule_for(rules, name).learning_rate > 0


simple = st.one_of(
    st.booleans(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False), st.text(max_size=20), st.none()
)
keys = st.sampled_from(
    [
        "network_dim",
        "network_alpha",
        "network_args",
        "unet_lr",
        "lr_scheduler",
        "optimizer_type",
        "optimizer_args",
        "max_train_steps",
        "seed",
        "resolution",
        "sample_prompts",
        "LoRA_type",
        "epoch",
        "lr_warmup",
        "job",
        "config",
    ],
)


@often
@given(
    st.dictionaries(st.one_of(keys, st.text(max_size=10)), st.one_of(simple, st.lists(simple, max_size=3)), max_size=8)
)
def test_every_key_of_a_recipe_is_accounted_for(content: dict[str, Any]) -> None:
    content = {"network_dim": 8, **content}
    try:
        report = recipes.read(json.dumps(content), "x.json").report()
    except InputError as error:
        assert all(isinstance(problem, str) and problem for problem in error.problems)
    else:
        assert "network_dim" in report


@often
@given(
    st.integers(1, 128),
    st.floats(0.01, 512),
    st.floats(1e-7, 1),
    st.sampled_from(["constant", "cosine", "linear"]),
    st.integers(2, 10**6),
    st.integers(0, 2**32),
    st.floats(0, 0.9),
)
def test_our_own_metadata_is_read_back_as_the_recipe(
    rank: int, alpha: float, rate: float, scheduler: str, steps: int, seed: int, dropout: float
) -> None:
    config = LoRAConfig.of(
        rank=rank, alpha=alpha, learning_rate=rate, scheduler=scheduler, steps=steps, seed=seed, dropout=dropout
    )
    run = RunFacts("x", "sd_v1", "stable-diffusion-v1", "eps", steps, steps, 1, 1, 0.0, 1.0, "fp32")
    data = DataFacts((Folder("a", 3),), 512, {(512, 512): 3})
    metadata = lora_metadata(config, run, data)
    assert all(isinstance(value, str) for value in metadata.values())
    again = recipes.read_metadata(metadata).config
    for name in ("rank", "alpha", "learning_rate", "scheduler", "steps", "seed", "dropout"):
        assert again.flat()[name] == config.flat()[name], name


# ---------------------------------------------------------------- buckets


@often
@given(
    st.integers(1, 8000),
    st.integers(1, 8000),
    st.integers(64, 2048),
    st.sampled_from([8, 16, 64, 128]),
    st.integers(64, 512),
    st.integers(512, 4096),
)
def test_every_picture_covers_its_bucket(
    width: int, height: int, resolution: int, step: int, shortest: int, longest: int
) -> None:
    sizes = DatasetSettings(
        resolution=resolution, bucket_step=step, shortest_side=shortest, longest_side=longest
    ).bucket_sizes()
    assert sizes == sorted(set(sizes)) and all(side % step == 0 and side > 0 for size in sizes for side in size)
    assert {(height, width) for width, height in sizes} == set(sizes)
    fit = fit_picture(width, height, sizes)
    assert (fit.width, fit.height) in sizes
    for cut in [fit, *crops(fit)]:
        assert 0 <= cut.left <= cut.scaled_width - cut.width and 0 <= cut.top <= cut.scaled_height - cut.height
    assert len(crops(fit)) == CROP_VARIANTS
    assert fit.scaled_width == fit.width or fit.scaled_height == fit.height


@often
@given(st.integers(64, 2048), st.sampled_from([8, 16, 64, 256]))
def test_no_bucket_is_larger_than_the_resolution_asks(resolution: int, step: int) -> None:
    assert all(
        width * height <= max(resolution, step) ** 2 for width, height in bucket_sizes(resolution, step, 1, 8192)
    )


@often
@given(st.text(max_size=20))
def test_resolutions_are_read_or_refused(text: str) -> None:
    try:
        assert all(64 <= each <= 4096 for each in DatasetSettings(extra_resolutions=text).resolutions())
    except InputError as error:
        assert "extra_resolutions" in str(error)


# ---------------------------------------------------------------- names and files


@often
@given(
    st.one_of(st.text(max_size=30), st.lists(words | st.sampled_from(["..", ".", "", "CON"]), max_size=5).map("/".join))
)
def test_a_name_that_is_taken_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    try:
        path = resolve(name, [tmp_path])
    except PathRefused:
        return
    assert path != tmp_path and path.is_relative_to(tmp_path) and check_parts(name) == path.relative_to(tmp_path).parts
    assert check_name(name, "name", "Node") == name.strip().removesuffix(".safetensors")


METADATA = st.dictionaries(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=10), st.text(max_size=20), max_size=5
)


@often
@given(METADATA, st.integers(1, 4), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_a_saved_lora_comes_back(tmp_path: Path, metadata: dict[str, str], rank: int, dtype: torch.dtype) -> None:
    metadata = {key: value.encode("utf-8", "replace").decode() for key, value in metadata.items()}
    tensors = {"lora_unet_a.lora_down.weight": torch.ones(rank, 3, dtype=dtype), "lora_unet_a.alpha": torch.tensor(2.0)}
    path = save_lora(tmp_path / "a.safetensors", tensors, metadata)
    read = read_lora_file(path)
    header = read_header(path)
    assert metadata.items() <= read.metadata.items() and header.metadata == read.metadata
    assert all(torch.equal(read[key], tensor) and read[key].dtype == tensor.dtype for key, tensor in tensors.items())
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert length <= header_size(tensors, read.metadata) + 8
    path.unlink()


@pytest.mark.parametrize("size", [0, 7, 8, 9])
@often
@given(data=st.binary(max_size=64))
def test_any_bytes_are_no_lora(tmp_path: Path, size: int, data: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(data[:size] if size < 9 else len(data).to_bytes(8, "little") + data)
    with pytest.raises(InputError):
        read_lora_file(tmp_path / "x.safetensors")
