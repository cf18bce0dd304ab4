"""Preparing a run: all checks first, then encoding. Each function returns what it prepared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from time import time
from typing import Any

import torch

from .. import host
from ..adapters import KINDS, Adapter
from ..adapters.attach import is_convolution
from ..adapters.dropout import check_dropout
from ..adapters.layer_rules import check_layer_rules, parse_layer_rules, rule_for
from ..basics.errors import raise_if_any
from ..config import LoRAConfig
from ..data.cache import Cache
from ..data.dataset import Dataset
from ..data.encode import Encoders, encode_samples, latent_spread
from ..data.hold_out import hold_out
from ..data.plan import Plan
from ..learning.family import Family
from ..learning.optimizers import check_optimizer
from ..learning.timesteps import zero_terminal_sigmas
from ..lora.continuing import Continued, continued
from ..lora.peft_dora import with_hosts_dora
from ..model.batch_source import BatchSource, TextConditions
from ..model.builder import Builder
from ..model.networks import Setup
from .advice import advice
from .notes import Notes
from .report import notes_about
from .validation import samples_of


@dataclass(frozen=True)
class Models:
    """MODEL, CLIP and VAE from the graph; they are only read."""

    model: Any
    clip: Any
    vae: Any


@dataclass(frozen=True)
class Base:
    """The base model, as training uses it."""

    family: Family
    layer_names: Mapping[str, host.LayerNames]
    """names of each layer in LoRA files, by state-dict key of its weight"""
    device: torch.device
    dtype: torch.dtype
    """in which it computes"""


@dataclass(frozen=True)
class Data:
    """The pictures, and the order in which they are trained on."""

    training: Dataset
    held_out: Dataset | None
    """pictures for validation"""
    plan: Plan


@dataclass(frozen=True)
class Prepared:
    """A run that was checked and can begin. Nothing is encoded or written yet."""

    name: str
    """of the LoRA; the names of its files begin with it"""
    models: Models
    """with `frozen` applied"""
    config: LoRAConfig
    adapters: dict[str, Adapter]
    """of the LoRA that is continued, by state-dict key of the base weight; empty: new ones are made"""
    frozen: dict[str, torch.Tensor]
    """entries of the LoRA that is continued which are not trained"""
    base: Base
    data: Data
    notes: Notes
    started_at: float = field(default_factory=time)
    """seconds since 1970"""

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders are trained."""
        return self.config.optimization.text_encoder_learning_rate > 0

    def builder(self) -> Builder:
        """Makes the networks, the optimizer and the engine."""
        setup = Setup(
            model=self.models.model,
            clip=self.models.clip,
            config=self.config,
            family=self.base.family,
            names=self.base.layer_names,
            note=self.notes.add,
        )
        return Builder(setup, self.adapters, len(self.data.training.pictures))


@dataclass(frozen=True)
class Inputs:
    """Encoded pictures and captions."""

    batches: BatchSource
    held_out: TextConditions | None


def prepare(
    models: Models, dataset: Dataset, config: LoRAConfig, name: str, start: Mapping[str, torch.Tensor] | None = None
) -> Prepared:
    """Checks what a run is asked for, and gathers what it needs.

    Args:
        name: of the LoRA.
        start: a LoRA to continue.

    Raises:
        InputError: model, dataset and config do not go together, or a model is missing.
    """
    host.check_present(models.model, models.clip, models.vae, "Train LoRA")
    if all(picture.is_regularisation for picture in dataset.pictures):
        raise_if_any("Train LoRA", ["dataset holds no picture to train on: connect Load Dataset with pictures."])
    host.check_formats(models.model)
    notes, layer_names = Notes(), host.changeable_names(models.model, models.clip)
    found = Continued({}, {}, config, [])
    if start is not None:
        start = with_hosts_dora(start, layer_names, models.model, models.clip)
        found = continued(start, layer_names, config, models.model.model, models.clip.cond_stage_model)
    config = found.config
    notes.add(*found.notes)
    if found.frozen:
        model, clip = host.with_lora(models.model, models.clip, found.frozen, 1.0)
        models = replace(models, model=model, clip=clip)
    if config.objective.timestep_sampling == "auto" and (density := host.timestep_density(models.model)) != "auto":
        config = config.changed(timestep_sampling=density)
    family = host.family(models.model)
    prediction = family.prediction
    if config.objective.zero_terminal_snr and prediction.takes_zero_terminal_snr:
        rescaled = replace(prediction, sigmas=zero_terminal_sigmas(prediction.sigmas))
        family = replace(family, prediction=rescaled)
    dtype = host.training_dtype(models.model, config.run.precision)
    training, held_out = hold_out(dataset, config.run.validation_share, config.run.seed)
    prepared = Prepared(
        name=name,
        models=models,
        config=config,
        adapters=found.adapters,
        frozen=found.frozen,
        base=Base(family, layer_names, host.training_device(models.model), dtype),
        data=Data(training, held_out, Plan(training, config.optimization, config.run.seed)),
        notes=notes,
    )
    _check(prepared)
    notes.add(*training.problems, *training.notes, *host.warnings_about(models.model))
    return prepared


def encode(
    prepared: Prepared, prompts: tuple[str, ...], cache: Cache | None, show: Callable[[str, int, int, str], None]
) -> Inputs:
    """Encodes all pictures and captions of the run, as far as they are not in the cache.

    Args:
        prompts: of sample pictures.
        show: called with ("encoding", number of the value, how many, their kind) while they are computed.

    Raises:
        InputError: pictures cannot be read, or the VAE gives values that are not numbers.
    """
    models, config, data = prepared.models, prepared.config, prepared.data

    def on_progress(kind: str, done: int, total: int) -> None:
        host.raise_if_interrupted()
        show("encoding", done + 1, total, kind)

    encoded = partial(
        encode_samples,
        encoders=Encoders(models.model, models.clip, models.vae),
        on_progress=on_progress,
        cache=cache,
        captions=not prepared.trains_text,
        together=prepared.base.device.type == "cuda" and not config.run.deterministic,
    )
    is_sized = host.wants_size_conditioning(models.model)
    training = encoded(data.training, data.plan.all_samples(), ["", *prompts] if config.run.sample_every else [])
    batches = BatchSource(
        TextConditions(models.clip, data.training, training, is_sized),
        plan=data.plan,
        family=prepared.base.family,
        objective=config.objective,
        seed=config.run.seed,
    )
    held_out = None
    if data.held_out is not None:
        validation = encoded(data.held_out, samples_of(data.held_out), [])
        held_out = TextConditions(models.clip, data.held_out, validation, is_sized)
    if cache is not None:
        prepared.notes.add(*cache.notes)
    spread = latent_spread(training)
    if not 0.4 < spread < 2.5:
        prepared.notes.add(
            f"The latents' standard deviation is {spread:.2f} where about 1 is usual: "
            "do MODEL and VAE come from the same checkpoint?"
        )
    return Inputs(batches, held_out)


def _check(prepared: Prepared) -> None:
    """Refuses recipes that cannot be trained on this model; notes settings without effect, and advice.

    Raises:
        InputError: with all problems of one kind.
    """
    config, base, models = prepared.config, prepared.base, prepared.models
    prediction, optimization = base.family.prediction, config.optimization
    problems = []
    if config.objective.zero_terminal_snr and not prediction.takes_zero_terminal_snr:
        problems.append(
            f"zero_terminal_snr is on, but the model predicts {prediction.name}: "
            "only v-prediction models can start from pure noise. Turn it off."
        )
    if base.dtype == torch.float16 and not host.takes_fp16(models.model):
        problems.append(
            "precision is fp16, in which ComfyUI does not run this model, whose numbers are too large for it: "
            "use bf16, or fp32."
        )
    raise_if_any("LoRA Config", problems)
    text_encoder = models.clip.cond_stage_model if prepared.trains_text else None
    targets = prepared.builder().targets_of(models.model.model, text_encoder)
    rules = parse_layer_rules(config.adapter.layer_rules)
    if not prepared.adapters:
        check_layer_rules(rules, [target.name for target in targets])
    check_dropout(prepared.adapters.values() or [KINDS[config.adapter.kind]], config.adapter)
    rates = {optimization.learning_rate * rule_for(rules, target.name).learning_rate for target in targets}
    if prepared.trains_text:
        rates.add(optimization.text_encoder_learning_rate)
    check_optimizer(optimization, sorted(rates))
    steps = prepared.data.plan.steps
    if optimization.warmup_steps(steps) >= steps:
        warmup = f"warmup is {optimization.warmup:g} of {steps} steps"
        raise_if_any("LoRA Config", [f"{warmup}: it must end before the run does."])
    prepared.notes.add(*notes_about(config, prediction.name, any(map(is_convolution, targets))))
    prepared.notes.add(*advice(config, host.base_version(models.model)[0], prepared.data.training))
