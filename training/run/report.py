"""The run's report, notes on its recipe, and facts of its data for the LoRA file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import torch

from ..adapters import KINDS, Adapter
from ..adapters.attach import describe
from ..config import DEFAULTS, LoRAConfig
from ..data.dataset import Dataset, bucket_table, upscaled
from ..learning.prediction import PREDICTIONS
from ..lora.metadata import DataFacts, Folder

MOST_LISTED = 8
OF_FOLDERS = (
    *("trigger_word", "caption_dropout", "tag_dropout", "flip", "random_crop", "shuffle_tags", "keep_tokens"),
    "masked_loss",
)
"""settings that a folder of pictures may override"""


def run_report(
    *,
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
    """The report of a run, one line per subject.

    Args:
        seconds: that the run took, preparation included.
        base: the base model in words.
        notes: sentences for the end of the report.
    """
    prior = sum(picture.is_regularisation for picture in dataset.pictures)
    buckets = ", ".join(f"{w} x {h}: {count}" for (w, h), count in bucket_table(dataset).items())
    window = max(1, len(losses) // 10)
    lines = [
        f"LoRA {name}: {describe(adapters)}, {_size(config)}, seed {config.run.seed}",
        f"Base: {base}",
        f"Data: {len(dataset.pictures) - prior} pictures"
        + (f" and {prior} for regularisation" if prior else "")
        + f"; buckets {buckets}",
        f"Steps: {len(losses)} of batch {config.optimization.batch_size}"
        + (f" x {config.optimization.gradient_accumulation}" if config.optimization.gradient_accumulation > 1 else "")
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


def notes_about(config: LoRAConfig, prediction: str, has_convolutions: bool) -> list[str]:
    """Notes on settings that have no effect in this run, and on settings to which the user must pay attention.

    Args:
        prediction: a key of PREDICTIONS.
        has_convolutions: whether convolutions larger than 1x1 are trained.
    """
    objective, kind = config.objective, PREDICTIONS[prediction]
    values = config.flat()

    def is_set(*names: str) -> list[str]:
        return [name for name in names if values[name] != DEFAULTS[name]]

    idle: list[tuple[list[str], str]] = []
    if not kind.has_snr_weights:
        idle.append((is_set("min_snr_gamma", "debiased_estimation"), f"on a {prediction} model"))
    sampling = objective.timestep_sampling
    if sampling == "auto":
        sampling = kind.usual_sampling
    if sampling != "shift":
        idle.append((is_set("timestep_shift"), "without the timestep_sampling shift"))
    if sampling == "uniform":
        idle.append((is_set("logit_mean", "logit_std"), "on uniform timesteps"))
    if not has_convolutions:
        idle.append((is_set("conv_rank", "conv_alpha"), "without convolutions among the targets"))
    adapter = KINDS[config.adapter.kind]
    if not adapter.takes_factor:
        idle.append((is_set("lokr_factor"), f"on {config.adapter.kind}"))
    if objective.loss == "l2":
        idle.append((is_set("huber_c", "huber_schedule"), "on the loss l2"))
    if not objective.multires_noise_iterations:
        idle.append((is_set("multires_noise_discount"), "without multires_noise_iterations"))
    notes = [f"{name} has no effect {where}." for names, where in idle for name in names]
    if objective.zero_terminal_snr:
        notes.append(
            "Trained with zero_terminal_snr: when you draw, put ModelSamplingDiscrete (v_prediction, zsnr on) "
            "between the model and the sampler."
        )
    optimization, optimizer = config.optimization, config.optimization.optimizer_kind
    if optimizer.scheduler and optimization.scheduler != optimizer.scheduler:
        notes.append(
            f"{optimizer.name} is meant to go with the scheduler {optimizer.scheduler}, and goes with "
            f"{optimization.scheduler}."
        )
    return [*notes, *adapter.notes]


def data_facts(dataset: Dataset) -> DataFacts:
    """Facts of the dataset for the LoRA's metadata."""
    folders: dict[tuple[str, int, bool], list[int]] = {}
    for index, picture in enumerate(dataset.pictures):
        name = PurePosixPath(picture.name).parent.name or dataset.name
        folders.setdefault((name, picture.repeats, picture.is_regularisation), []).append(index)
    indices = [index for index, picture in enumerate(dataset.pictures) if not picture.is_regularisation]

    def usual(name: str) -> Any:
        """The value of a setting for most pictures: folders may override it."""
        return Counter(getattr(dataset.settings_of(index), name) for index in indices).most_common(1)[0][0]

    return DataFacts(
        folders=tuple(
            Folder(name, len(indices), repeats, is_prior, _tags(dataset, indices))
            for (name, repeats, is_prior), indices in folders.items()
        ),
        resolution=max(dataset.settings.resolutions()),
        buckets=bucket_table(dataset),
        prior_loss_weight=dataset.settings.prior_loss_weight,
        **{name: usual(name) for name in OF_FOLDERS},
    )


def _tags(dataset: Dataset, indices: Sequence[int]) -> dict[str, int]:
    tags: Counter[str] = Counter()
    for index in indices:
        tags.update({tag.strip() for tag in dataset.caption(index).split(",")} - {""})
    return dict(tags)


def _size(config: LoRAConfig) -> str:
    adapter = config.adapter
    size = f"rank {adapter.rank}, alpha {adapter.alpha:g}"
    if adapter.conv_rank or adapter.conv_alpha:
        size += (
            f", convolutions rank {adapter.conv_rank or adapter.rank}, alpha {adapter.conv_alpha or adapter.alpha:g}"
        )
    return size


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
