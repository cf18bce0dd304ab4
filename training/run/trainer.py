"""A whole run: from the graph's MODEL, CLIP, VAE and pictures to a LoRA."""

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

import torch

from .. import host
from ..adapters.dropout import draw_dropout
from ..basics.determinism import deterministic_kernels
from ..basics.errors import raise_if_any
from ..basics.randomness import generators_kept, seed_generators
from ..config import LoRAConfig
from ..data.cache import open_cache
from ..data.dataset import Dataset
from ..learning.batches import Batch, parts
from ..learning.fitting import Placement
from ..learning.loop import Diverged, train
from ..learning.prefetch import on_device, prefetched
from ..lora.lora import LoRAModel
from ..model.learner import Learner
from .origin import NO_GRAPH, dataset_facts, origin_of
from .pace import Pace
from .pauses import Pauses
from .prepare import Inputs, Models, Prepared, encode, prepare
from .progress import SamplePicture
from .recorder import Record, Recorder
from .report import run_report
from .resume import ANEW
from .run_recorder import recorded
from .sampling import Sampler

EXPLODED, FEWEST_LOSSES = 100.0, 20
"""A loss above EXPLODED x the largest so far counts as divergence, once FEWEST_LOSSES steps are done."""


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    lora: LoRAModel
    losses: list[float]
    """of every step"""
    samples: list[SamplePicture]
    report: str


def train_lora(
    models: Models,
    dataset: Dataset,
    config: LoRAConfig,
    name: str,
    *,
    start: Mapping[str, torch.Tensor] | None = None,
    previous: str = ANEW,
    workflow: str = "",
    graph: Mapping[str, str] = NO_GRAPH,
    record: Record = recorded,
) -> Trained:
    """Trains a LoRA for MODEL on the dataset. MODEL, CLIP and VAE are only read.

    Args:
        name: of the LoRA; the names of its files begin with it.
        start: a LoRA to continue; its layers, kinds, ranks and alphas stay.
        previous: what to do about a run of this name that stopped before its last step; one of `resume.PREVIOUS`.
        workflow: id of the workflow that the run belongs to, for the page.
        graph: digests of the graphs that made model, clip and vae, as far as they are known.
        record: makes the run's recorder.

    Raises:
        InputError: models, dataset and config do not go together, or the run's folder cannot be used.
        Diverged: the loss is not finite, or has exploded; a LoRA of the steps before is saved.
        Interrupted: by the user; what was learned is saved.
    """
    with (
        host.training_mode(),
        generators_kept(),
        deterministic_kernels(config.run.deterministic),
        open_cache() or nullcontext() as cache,
    ):
        prepared = prepare(models, dataset, config, name, start)
        if prepared.base.device.type == "cuda":  # the report tells the peak, encoding included
            torch.cuda.reset_peak_memory_stats(prepared.base.device)
        origin = origin_of(prepared.models, dataset, config, start, cache, graph=graph)
        with record(prepared, origin, previous, workflow) as recorder:
            host.check_compatible(prepared.models.model, prepared.models.clip, prepared.models.vae)
            inputs = encode(prepared, recorder.controls.sample_prompts, cache, recorder.show)
            if dataset_facts(dataset, cache) != origin.dataset:
                raise_if_any("The dataset", ["pictures, masks or captions changed while they were read: queue again."])
            host.make_room(prepared.base.device)
            with host.bounded_memory(prepared.base.device):
                return _train(prepared, inputs, recorder)


def _train(prepared: Prepared, inputs: Inputs, recorder: Recorder) -> Trained:
    """Attaches adapters to twins of the models, trains them, detaches them, and makes the LoRA."""
    device, progress, writer = prepared.base.device, recorder.progress, recorder.writer
    recorder.show("loading")
    with host.patches_blamed(prepared.models.model), ExitStack() as attachments:
        if device.type == "cuda":  # graphs, kernels and events belong to the current device
            attachments.enter_context(torch.cuda.device(device))
        pace = Pace(device.type == "cuda")
        learner = prepared.builder().fitted(partial(_try_largest_batch, prepared, inputs, pace), attachments)
        attachments.callback(learner.engine.release)
        _try_patches(prepared, inputs, learner)
        recorder.load(learner)
        _train_to_end(prepared, inputs, learner, recorder, pace)
    if learner.loss_scale is not None and (skipped := int(learner.loss_scale.skipped)):
        prepared.notes.add(
            f"{skipped} steps moved nothing, since their gradients were too large for fp16: precision bf16 loses none."
        )
    lora = writer.lora(writer.best(learner, progress))
    progress.is_over = True
    recorder.finish()
    report = ""
    with prepared.notes.telling("The report"):
        report = _report(prepared, learner, recorder)
    return Trained(lora, progress.losses, progress.pictures, report or "\n".join(prepared.notes.sentences))


def _try_largest_batch(prepared: Prepared, inputs: Inputs, pace: Pace, learner: Learner, placement: Placement) -> None:
    """Makes the forward and backward pass of the largest batch, without an optimizer step, and times it."""
    source, step = inputs.batches, learner.engine.step
    number, micro = prepared.data.plan.largest()
    say = prepared.notes.add
    batch = replace(on_device(source.batch(learner.networks, number, micro), prepared.base.device, say), bins=None)
    try:
        first = next(parts(batch, placement.pictures))
        begun = monotonic()
        step.accumulate(source.with_live_text(learner.networks, first, number, micro))
        if prepared.base.device.type == "cuda":
            torch.cuda.synchronize(prepared.base.device)
        passes = prepared.config.optimization.gradient_accumulation * len(batch.x_0) / len(first.x_0)
        pace.expected = passes * (monotonic() - begun)
    finally:
        step.reset()


def _try_patches(prepared: Prepared, inputs: Inputs, learner: Learner) -> None:
    """Looks at the gradients of a pass, if MODEL carries code of other nodes.

    Raises:
        InputError: layers get no gradient because of it.
    """
    model, networks = prepared.models.model, learner.networks
    if not host.patch_names(model):
        return
    step, say = learner.engine.step, prepared.notes.add
    batch = replace(on_device(inputs.batches.batch(networks, 0, 0), prepared.base.device, say), bins=None)
    first = batch if prepared.trains_text else next(parts(batch, 1))
    try:
        step.accumulate(inputs.batches.with_live_text(networks, first, 0, 0))
        gradients = {
            key: any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in adapter.parameters())
            for key, adapter in networks.adapters.items()
        }
    finally:
        step.reset()
    host.check_reached(model, gradients)


def _train_to_end(prepared: Prepared, inputs: Inputs, learner: Learner, recorder: Recorder, pace: Pace) -> None:
    """Trains to the last step. If the run diverges and may step back, goes on from the last good checkpoint."""
    models, config, progress = prepared.models, prepared.config, recorder.progress
    resolution = prepared.data.training.settings.resolution
    sampler = Sampler(models.model, models.vae, config, resolution, prepared.base.device)
    pauses = Pauses(prepared, inputs, learner, recorder, sampler)
    if config.run.on_divergence == "step back" and progress.step == 0:
        recorder.checkpoint()
    while not progress.is_over:
        try:
            return _train_on(prepared, inputs, learner, pauses, pace)
        except Diverged as error:
            if not recorder.step_back(learner, error):
                raise


def _train_on(prepared: Prepared, inputs: Inputs, learner: Learner, pauses: Pauses, pace: Pace) -> None:
    """Trains from the last step done to the end, or until a pause ends the run."""
    config, source, networks, recorder = prepared.config, inputs.batches, learner.networks, pauses.recorder
    progress, steps, start = recorder.progress, prepared.data.plan.steps, recorder.progress.step
    passes = range(config.optimization.gradient_accumulation)
    order = ((step, micro) for step in range(start, steps) for micro in passes)
    show_steps, say = host.progress_bar(steps, prepared.notes.telling), prepared.notes.add
    with prefetched(partial(source.batch, networks), order, prepared.base.device, say) as batch_made_at:
        if config.run.sample_every and start == 0:
            pauses.sample(0)
        recorder.show("training")
        if progress.completed < start and pauses.is_due(start) and pauses.pause(start):
            return

        pace.rest()

        def batch_at(step: int, micro: int) -> Batch:
            host.raise_if_interrupted()
            show_steps(progress.step)
            seed_generators(config.run.seed, step, micro, "model")
            draw_dropout(networks.adapters, config.adapter, config.run.seed, step, micro)
            return source.with_live_text(networks, batch_made_at(step, micro), step, micro)

        def on_step(step: int, loss: float, learning_rate: float) -> None:
            if progress.step >= FEWEST_LOSSES and loss > EXPLODED * progress.largest_loss > 0:
                recorder.learner = None  # its parameters have made the step
                what = f"The loss is {loss:.3g}, more than {EXPLODED:g} times the largest before it,"
                raise Diverged(what, step, config.optimization.learning_rate)
            progress.add_step(loss, learning_rate)
            if words := pace.stepped():
                prepared.notes.add(words)
            recorder.stepped()

        def on_pause(step: int) -> bool | None:
            try:
                return pauses.pause(step)
            finally:
                pace.rest()

        train(
            learner.engine,
            batch_at,
            config.optimization,
            steps,
            on_step=on_step,
            pauses_at=pauses.is_wanted,
            on_pause=on_pause,
            start=start,
            rate_factor_at=progress.rate_factor_at,
            say=prepared.notes.add,
        )
    show_steps(steps)


def _report(prepared: Prepared, learner: Learner, recorder: Recorder) -> str:
    base, config = prepared.base, prepared.config
    words = (
        f"{host.base_version(prepared.models.model)[1]}, {base.family.prediction.name} prediction, "
        f"{str(base.dtype).removeprefix('torch.')} on {base.device}"
    )
    formats = host.linear_formats(learner.networks.model)
    if config.run.base_precision != "as loaded" and (converted := formats[host.OURS]):
        share = "" if converted == formats.total() else f"{converted} of the blocks' {formats.total()} "
        words += f", {share}linear weights in {config.run.base_precision}"
    return run_report(
        name=prepared.name,
        config=config,
        dataset=prepared.data.training,
        adapters=learner.networks.adapters,
        losses=recorder.progress.losses,
        seconds=recorder.progress.elapsed,
        base=words,
        device=base.device,
        notes=prepared.notes.sentences,
    )
