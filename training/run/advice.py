"""Advice before a run starts, on settings that are allowed but commonly make a run fail."""

import re
from collections import Counter
from math import ceil, sqrt

from .. import host
from ..adapters import KINDS
from ..config import LoRAConfig
from ..data.dataset import Dataset, is_enlarged

MOST_VIEWS, GOOD_VIEWS = 400, 150
"""how often one picture is shown in a run"""
MOST_UNEVEN = 2.0
"""how much more a picture of a rare shape may weigh than one of a usual shape"""
LARGEST_SCALE, SMALLEST_SCALE = 4.0, 0.01
"""the factor on an adapter's output, alpha / rank"""
LEAST_IN_FP16 = 6.1e-5
"""Below it fp16 loses digits."""
COMMON_WORDS = frozenset("a an the of on in at to and or with by from for is are it its his her this that".split())
"""words that describe no subject"""


def advice(config: LoRAConfig, base: str, dataset: Dataset) -> list[str]:
    """Advice, a sentence or two each: the setting, why it fails, a better value.

    Args:
        base: the base model's version as files name it (ss_base_model_version).
        dataset: with at least one picture that is not for regularisation.
    """
    return [
        *_about_rates(config),
        *_about_scale(config),
        *_about_views(config, dataset),
        *_about_shapes(config, dataset),
        *_about_sizes(base, dataset),
        *_about_captions(dataset),
        *_about_sampling(config),
    ]


def _about_rates(config: LoRAConfig) -> list[str]:
    optimization = config.optimization
    rate, text_rate = optimization.learning_rate, optimization.text_encoder_learning_rate
    rates = optimization.optimizer_kind.rates
    notes = []
    if rate > rates.highest:
        notes.append(f"learning_rate is {rate:g}, high for {optimization.optimizer}: {rates.above}. Try {rates.usual}.")
    elif rate < rates.lowest:
        notes.append(
            f"learning_rate is {rate:g}, low for {optimization.optimizer}: hardly anything is learned. "
            f"Try {rates.usual}."
        )
    if text_rate > rate:
        notes.append(
            f"text_encoder_learning_rate is {text_rate:g}, above learning_rate, {rate:g}: the text encoder learns the "
            f"captions by heart and forgets other words. Try {rate / 5:g}, or 0 to leave it as it is."
        )
    moved = rate * optimization.steps
    if (
        config.run.save_precision == "fp16"
        and optimization.epochs == 0
        and rates.lowest <= rate
        and moved < LEAST_IN_FP16
    ):
        notes.append(
            f"learning_rate {rate:g} over {optimization.steps} steps moves the LoRA by {moved:.0e} at most, where fp16 "
            "keeps few digits. Train longer, or set save_precision to fp32."
        )
    return notes


def _about_scale(config: LoRAConfig) -> list[str]:
    adapter = config.adapter
    if not KINDS[adapter.kind].has_scale:
        return []
    scale = adapter.alpha / (sqrt(adapter.rank) if adapter.rslora else adapter.rank)
    sizes = f"alpha is {adapter.alpha:g} at rank {adapter.rank}{' with rslora' if adapter.rslora else ''}"
    usual = "1 to 4" if adapter.rslora else f"{adapter.rank / 2:g} to {adapter.rank}"
    if scale > LARGEST_SCALE:
        return [f"{sizes}: what is learned acts {scale:.0f} times as strong, and breaks pictures. Try {usual}."]
    if scale < SMALLEST_SCALE:
        return [f"{sizes}: what is learned is scaled down to {scale:.1g}, next to nothing. Try {usual}."]
    return []


def _about_views(config: LoRAConfig, dataset: Dataset) -> list[str]:
    optimization = config.optimization
    own = [picture for picture in dataset.pictures if not picture.is_regularisation]
    resolutions = dataset.settings.resolutions()
    buckets: Counter[tuple[int, int]] = Counter()
    for resolution in resolutions:
        for picture, fit in zip(dataset.pictures, dataset.fits(resolution), strict=True):
            buckets[fit.width, fit.height] += picture.repeats
    fullest = max(buckets.values())
    notes = []
    if optimization.batch_size > fullest:
        notes.append(
            f"batch_size is {optimization.batch_size}, but no bucket has more than {fullest} pictures, repeats "
            f"included: no batch is ever full. Lower batch_size to {fullest}, raise repeats, or crop pictures to "
            "fewer shapes."
        )
    if optimization.epochs:
        views = optimization.epochs * len(resolutions) * sum(picture.repeats for picture in own)
    else:
        views = optimization.steps * optimization.gradient_accumulation * min(optimization.batch_size, fullest)
        views //= 1 if len(own) == len(dataset.pictures) else 2  # every other one is for regularisation
    each = views // len(own)
    if each > MOST_VIEWS:
        name, planned = ("epochs", optimization.epochs) if optimization.epochs else ("steps", optimization.steps)
        notes.append(
            f"{len(own)} pictures are shown about {each} times each: a LoRA then repeats its pictures instead of their "
            f"subject. Try more pictures, or {name} {max(1, planned * GOOD_VIEWS // each)}."
        )
    return notes


def _about_shapes(config: LoRAConfig, dataset: Dataset) -> list[str]:
    """A batch has one shape, and its loss is the mean over its pictures: in a small batch each weighs more."""
    batch_size = config.optimization.batch_size
    fits = [fit for resolution in dataset.settings.resolutions() for fit in dataset.fits(resolution)]
    shapes = [(fit.width, fit.height) for fit in fits]
    pictures = [*dataset.pictures] * len(dataset.settings.resolutions())
    counts: Counter[tuple[int, int]] = Counter()
    for shape, picture in zip(shapes, pictures, strict=True):
        counts[shape] += picture.repeats
    lengths = {shape: count / ceil(count / batch_size) for shape, count in counts.items()}
    usual = max(lengths.values())
    odd = {
        picture.name: shape
        for shape, picture in zip(shapes, pictures, strict=True)
        if usual / lengths[shape] >= MOST_UNEVEN and not picture.is_regularisation
    }
    if not odd:
        return []
    name, (width, height) = max(odd.items(), key=lambda item: usual / lengths[item[1]])
    return [
        f"{len(odd)} of {len(dataset.pictures)} pictures have shapes too rare to fill a batch of {batch_size}, as "
        f"{name} in {width} x {height}: it counts {usual / lengths[width, height]:.2g} times as much as a picture of "
        "a usual shape. Crop such pictures to a usual shape, leave them out, or lower batch_size."
    ]


def _about_sizes(base: str, dataset: Dataset) -> list[str]:
    side = max(dataset.settings.resolutions())
    notes = []
    family = host.family_of_version(base)
    made_for = family.resolution if family else None
    if family and made_for and side <= made_for.too_small:
        notes.append(
            f"resolution is {side} on {family.name}, which was made for {made_for.native} and draws badly at that "
            f"size: the LoRA learns the bad drawing too. Set resolution to {made_for.native}, or to "
            f"{made_for.smallest} at least where memory is short."
        )
    if family and made_for and 0 < made_for.too_large <= side:
        notes.append(
            f"resolution is {side} on {family.name}, which was made for {made_for.native} and doubles subjects at that "
            f"size: the LoRA learns slowly and takes much memory. Set resolution to {made_for.native}, or to "
            f"{made_for.largest} at most."
        )
    sizes = [
        (picture.width * picture.height, picture, fit)
        for picture, fit in zip(dataset.pictures, dataset.fits(side), strict=True)
        if not picture.is_regularisation
    ]
    if all(is_enlarged(picture, fit) for _, picture, fit in sizes):
        _, largest, _ = max(sizes, key=lambda size: size[0])
        notes.append(
            f"resolution is {side}, but the largest picture is {largest.width} x {largest.height}: all are enlarged, "
            "and the LoRA learns their blur. Lower resolution, or use larger pictures."
        )
    return notes


def _about_captions(dataset: Dataset) -> list[str]:
    own = [index for index, picture in enumerate(dataset.pictures) if not picture.is_regularisation]
    triggers = {dataset.settings_of(index).trigger_word for index in own} - {""}
    if not any(dataset.pictures[index].caption for index in own):
        means = f"by {' and '.join(sorted(map(repr, triggers)))} alone" if triggers else "without any words"
        return [
            f"No picture has a caption, so all are learned {means}, ground and pose included. Connect Caption Images "
            "behind Load Dataset, or put a .txt file beside each picture."
        ]
    words = [set(re.findall(r"\w{2,}", dataset.caption(index).lower())) - COMMON_WORDS for index in own]
    if not triggers and not set.intersection(*words):
        return [
            "trigger_word is empty, and the captions have no word in common: nothing calls up what is learned, and it "
            "shows in every picture. That may do for a style; for a subject set trigger_word to a word of its own."
        ]
    return []


def _about_sampling(config: LoRAConfig) -> list[str]:
    run = config.run
    if not run.sample_every:
        return []
    guided = 1 if run.sample_guidance == 1 else 2
    drawing = len(run.sample_prompts) * run.sample_steps * guided  # forward passes
    training = (
        run.sample_every * config.optimization.batch_size * config.optimization.gradient_accumulation * 3
    )  # backward: as two
    if drawing <= training:
        return []
    return [
        f"sample_every is {run.sample_every}: drawing the samples takes about {drawing / training:.0f} times as "
        f"long as the training. Try {max(50, 4 * run.sample_every * drawing // training)}, or fewer prompts."
    ]
