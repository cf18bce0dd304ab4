"""What a run says about itself and its data, to people and in the file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

import torch

from .adapters import Adapter
from .attach import describe
from .config import LoRAConfig
from .dataset import Dataset, bucket_table, upscaled
from .export import DataFacts, Folder

MOST_LISTED = 8


def run_report(
    name: str,
    config: LoRAConfig,
    dataset: Dataset,
    adapters: Mapping[str, Adapter],
    losses: Sequence[float],
    seconds: float,
    base: str,
    device: torch.device,
    notes: Sequence[str],
) -> str:
    """The report, a line a subject.

    Args:
        base: the base model in words.
        notes: what a person should know, a sentence each.
    """
    prior = sum(picture.is_regularisation for picture in dataset.pictures)
    buckets = ", ".join(f"{w} x {h}: {count}" for (w, h), count in bucket_table(dataset).items())
    window = max(1, len(losses) // 10)
    lines = [
        f"LoRA {name}: {describe(adapters)}, {_size(config)}, seed {config.seed}",
        f"Base: {base}",
        f"Data: {len(dataset.pictures) - prior} pictures"
        + (f" and {prior} for regularisation" if prior else "")
        + f"; buckets {buckets}",
        f"Steps: {len(losses)} of batch {config.batch_size}"
        + (f" x {config.gradient_accumulation}" if config.gradient_accumulation > 1 else "")
        + f" in {seconds:.0f} s, {len(losses) / max(seconds, 1e-9):.2f} steps a second, preparation included",
        f"Loss: {_mean(losses[-window:]):.4f} on average over the last {window} steps, "
        f"{_mean(losses[:window]):.4f} over the first",
    ]
    if device.type == "cuda":
        lines.append(f"Peak GPU memory: {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    enlarged = upscaled(dataset)
    if enlarged:
        lines.append(f"Note: enlarged to fit their bucket: {'; '.join(enlarged[:MOST_LISTED])}")
    return "\n".join([*lines, *(f"Note: {note}" for note in notes)])


def notes_about(config: LoRAConfig, prediction: str) -> list[str]:
    """Settings of the recipe that have no effect on such a model, or that ask something of the person who uses it.

    Args:
        prediction: eps, v or flow.
    """
    notes = []
    if prediction == "flow":
        idle = [name for name in ("min_snr_gamma", "debiased_estimation") if getattr(config, name)]
        notes += [f"{name} has no effect on a flow model." for name in idle]
    if config.zero_terminal_snr:
        notes.append(
            "Trained with zero_terminal_snr: when you draw, put ModelSamplingDiscrete (v_prediction, zsnr on) "
            "between the model and the sampler."
        )
    if config.optimizer == "prodigy" and config.learning_rate < 0.1:
        notes.append(f"prodigy finds the rate itself: learning_rate is meant to be 1, and is {config.learning_rate:g}.")
    if config.optimizer == "schedule_free" and config.scheduler != "constant":
        notes.append(f"schedule_free is meant to go with the scheduler constant, and goes with {config.scheduler}.")
    if config.adapter == "oft":
        notes.append(
            "alpha has no effect on OFT. ComfyUI applies the strength of an OFT file twice: 0.7 acts as 0.5, 1 as 1."
        )
    return notes


def data_facts(dataset: Dataset) -> DataFacts:
    """What the file says about the pictures."""
    folders: dict[tuple[str, int, bool], list[int]] = {}
    for index, picture in enumerate(dataset.pictures):
        place = PurePosixPath(picture.name).parent.name or dataset.name
        folders.setdefault((place, picture.repeats, picture.is_regularisation), []).append(index)
    settings = dataset.settings
    return DataFacts(
        tuple(
            Folder(name, len(indices), repeats, is_prior, _tags(dataset, indices))
            for (name, repeats, is_prior), indices in folders.items()
        ),
        max(settings.resolutions()), bucket_table(dataset), settings.trigger_word, settings.prior_loss_weight,
        settings.caption_dropout, settings.tag_dropout, settings.flip, settings.random_crop, settings.shuffle_tags,
        settings.keep_tokens, settings.masked_loss,
    )  # fmt: skip


def _tags(dataset: Dataset, indices: Sequence[int]) -> dict[str, int]:
    captions = [dataset.caption(index) for index in indices]
    return dict(Counter(tag.strip() for caption in captions for tag in caption.split(",") if tag.strip()))


def _size(config: LoRAConfig) -> str:
    size = f"rank {config.rank}, alpha {config.alpha:g}"
    if config.conv_rank or config.conv_alpha:
        size += f", convolutions rank {config.conv_rank or config.rank}, alpha {config.conv_alpha or config.alpha:g}"
    return size


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
