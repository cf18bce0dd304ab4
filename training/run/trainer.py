"""A whole run: from the graph's MODEL, CLIP, VAE and data to a LoRA."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from .. import host
from ..adapters import KINDS, Adapter
from ..adapters.attach import Target, check_dropout, clear_dropout, draw_dropout, is_convolution
from ..adapters.layer_rules import check_layer_rules, parse_layer_rules, rule_for
from ..basics.determinism import deterministic_kernels
from ..basics.errors import raise_if_any
from ..config import LoRAConfig
from ..data.cache import Cache, open_cache
from ..data.dataset import Dataset
from ..data.encode import Encoders, encode_samples, latent_spread
from ..data.hold_out import hold_out
from ..data.plan import Plan
from ..learning.batches import Batch, parts
from ..learning.fitting import Placement
from ..learning.loop import Diverged, train
from ..learning.optimizers import check_optimizer
from ..learning.prefetch import on_device, prefetched
from ..learning.timesteps import zero_terminal_sigmas
from ..lora.continuing import continued
from ..lora.lora import LoRAModel
from ..model.batch_source import BatchSource, TextConditions
from ..model.builder import Builder
from ..model.learner import Learner
from ..model.networks import Setup
from .advice import advice
from .controls import Controls
from .folder import ANEW, open_run
from .lora_writer import Maker
from .origin import Origin, dataset_facts, lora_digest
from .recorder import Keeper
from .report import notes_about, run_report
from .sampling import SamplePicture, Sampler
from .validation import mean_loss, noised, samples_of

EXPLODED, FEWEST_LOSSES = 100.0, 20
"""times the largest of the losses before, of which there are so many, a loss is an explosion"""
HEARTBEAT = 0.1
"""seconds between two looks at a paused run's controls"""


@dataclass(frozen=True)
class Trained:
    """What a run gives."""

    lora: LoRAModel
    losses: list[float]
    samples: list[SamplePicture]
    report: str


def train_lora(
    model: Any,
    clip: Any,
    vae: Any,
    dataset: Dataset,
    config: LoRAConfig,
    name: str,
    start: Mapping[str, torch.Tensor] | None = None,
    previous: str = ANEW,
    workflow: str = "",
) -> Trained:
    """Trains a LoRA for MODEL on the dataset. MODEL, CLIP and VAE are only read.

    Args:
        name: of the LoRA, used for files written on the way.
        start: a LoRA to train on; its layers, kinds, ranks and alphas stay.
        previous: what to do about a run of this name that stopped before its end; one of `run_folder.PREVIOUS`.
        workflow: id of the workflow that the run is of, for the page.

    Raises:
        InputError: MODEL, CLIP, VAE, dataset and config do not go together, or the run's folder cannot be used.
        Diverged: the loss is no longer a number; what was learned before is saved.
        Interrupted: by the user; what was learned is saved.
    """
    if not any(not picture.is_regularisation for picture in dataset.pictures):
        raise_if_any("Train LoRA", ["dataset holds no picture to train on: connect Load Dataset with pictures."])
    with host.training_mode(), deterministic_kernels(config.run.deterministic), open_cache() or nullcontext() as cache:
        run = _Run(model, clip, vae, dataset, config, name, start)
        with run.kept_from(previous, workflow, cache):
            host.check_compatible(run.model, run.clip, vae)
            run.encode(cache)
            host.make_room(run.device)
            return run.train()


@dataclass
class _Run:
    """One run's parts, from what it was given to what it has made so far."""

    model: Any
    clip: Any
    vae: Any
    dataset: Dataset
    config: LoRAConfig
    name: str
    start: Mapping[str, torch.Tensor] | None = None
    adapters: dict[str, Adapter] = field(default_factory=dict)
    frozen: dict[str, torch.Tensor] = field(default_factory=dict)
    """entries of `start` that stay as they are"""
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.given = self.dataset, self.config
        self.names = host.layer_names(self.model, self.clip)
        if self.start is not None:
            self._continue(self.start)
        self.trains_text = self.config.optimization.text_encoder_learning_rate > 0
        self.family = host.family(self.model)
        self.device = host.training_device(self.model)
        if self.config.objective.zero_terminal_snr and self.family.prediction.takes_zero_terminal_snr:
            prediction = self.family.prediction
            rescaled = replace(prediction, sigmas=zero_terminal_sigmas(prediction.sigmas))
            self.family = replace(self.family, prediction=rescaled)
        self.dataset, self.held_out = hold_out(self.dataset, self.config.run.validation_share, self.config.run.seed)
        setup = Setup(
            model=self.model,
            clip=self.clip,
            config=self.config,
            family=self.family,
            names=self.names,
            note=self._note,
        )
        self.builder = Builder(setup, self.adapters, len(self.dataset.pictures))
        self.dtype = setup.dtype
        self._check_recipe()
        self.plan = Plan(self.dataset, self.config.optimization, self.config.run.seed)
        if self.config.optimization.warmup_steps(self.plan.steps) >= self.plan.steps:
            warmup = f"warmup is {self.config.optimization.warmup:g} of {self.plan.steps} steps"
            raise_if_any("LoRA Config", [f"{warmup}: it must end before the run does."])
        self.controls = Controls(self.config.run.sample_prompts)
        self.progress = host.progress_bar(self.plan.steps)
        self.is_sized = host.wants_size_conditioning(self.model)
        self.sampler = Sampler(self.model, self.vae, self.config, self.dataset.settings.resolution, self.device)
        self.started_at = time.time()
        self.maker = Maker(
            self.name, self.model, self.clip, self.dataset, self.config, self.plan, self.family, self.dtype, self.names,
            self.frozen, self.started_at,
        )  # fmt: skip
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.notes += [*self.dataset.problems, *host.warnings_about(self.model)]
        for note in self.notes:
            host.log("%s", note)

    def _continue(self, start: Mapping[str, torch.Tensor]) -> None:
        """Takes over the adapters of a LoRA; what of it is not trained goes into MODEL and CLIP for the run."""
        found = continued(start, self.names, self.config, self.model.model, self.clip.cond_stage_model)
        self.adapters, self.frozen, self.config = found.adapters, found.frozen, found.config
        self.notes += found.notes
        if self.frozen:
            self.model, self.clip = host.with_lora(self.model, self.clip, self.frozen, 1.0)

    def _check_recipe(self) -> None:
        """Refuses, before anything is encoded, what could not be trained; notes what has no effect."""
        config, rules = self.config, parse_layer_rules(self.config.adapter.layer_rules)
        problems = []
        if config.objective.zero_terminal_snr and not self.family.prediction.takes_zero_terminal_snr:
            problems.append(
                f"zero_terminal_snr is on, but the model predicts {self.family.prediction.name}: "
                "only v-prediction models can start from pure noise. Turn it off."
            )
        if self.dtype == torch.float16 and not host.takes_fp16(self.model):
            problems.append(
                "precision is fp16, in which ComfyUI does not run this model, whose numbers are too large for it: "
                "use bf16, or fp32."
            )
        raise_if_any("LoRA Config", problems)
        text_encoder = self.clip.cond_stage_model if self.trains_text else None
        targets: list[Target] = self.builder.targets_of(self.model.model, text_encoder)
        if self.start is None:
            check_layer_rules(rules, [target.name for target in targets])
        check_dropout(self.adapters.values() or [KINDS[config.adapter.kind]], config.adapter)
        rates = {config.optimization.learning_rate * rule_for(rules, target.name).learning_rate for target in targets}
        check_optimizer(
            config.optimization,
            sorted(rates | ({config.optimization.text_encoder_learning_rate} if self.trains_text else set())),
        )
        self.notes += notes_about(config, self.family.prediction.name, any(map(is_convolution, targets)))
        self.notes += advice(config, host.base_version(self.model)[0], self.dataset)

    def _note(self, note: str) -> None:
        self.kept.note(note)

    # ---------------------------------------------------------------- preparing

    @contextmanager
    def kept_from(self, previous: str, workflow: str, cache: Cache | None) -> Iterator[None]:
        """Keeps all that the run comes to, in a folder of its own or in that of the run that it goes on from."""
        dataset, config = self.given
        models = {
            "model": host.model_fingerprint(self.model), "clip": host.model_fingerprint(self.clip),
            "vae": host.model_fingerprint(self.vae), "start": lora_digest(self.start),
        }  # fmt: skip
        self.origin = Origin(config, dataset_facts(dataset, cache), models)
        opened = open_run(host.runs_root(), self.name, self.origin, previous)
        with closing(opened.folder):
            self.kept = Keeper(opened, self.maker, self.controls, self.notes, workflow)
            with self.kept.keeping(self.origin):
                yield

    def encode(self, cache: Cache | None) -> None:
        """Latents and embeddings of all that the run will see."""

        def on_progress(what: str, done: int, total: int) -> None:
            host.raise_if_interrupted()
            self.kept.events.preparing("encoding", done + 1, total, what)

        prompts = ["", *self.controls.sample_prompts] if self.config.run.sample_every else []
        encode = partial(
            encode_samples,
            encoders=Encoders(self.model, self.clip, self.vae),
            on_progress=on_progress,
            cache=cache,
            captions=not self.trains_text,
            together=self.device.type == "cuda" and not self.config.run.deterministic,
        )
        encoded = encode(self.dataset, self.plan.all_samples(), prompts)
        self.batch_source = BatchSource(
            TextConditions(self.clip, self.dataset, encoded, self.is_sized),
            plan=self.plan,
            family=self.family,
            objective=self.config.objective,
            seed=self.config.run.seed,
        )
        if self.held_out is not None:
            held_out = encode(self.held_out, samples_of(self.held_out), [])
            self.told_held_out = TextConditions(self.clip, self.held_out, held_out, self.is_sized)
        self.notes += cache.notes if cache is not None else []
        if dataset_facts(self.given[0], cache) != self.origin.dataset:
            raise_if_any("The dataset", ["pictures, masks or captions changed while they were read: queue again."])
        spread = latent_spread(encoded)
        if not 0.4 < spread < 2.5:
            self._note(
                f"The latents' standard deviation is {spread:.2f} where about 1 is usual: "
                "do MODEL and VAE come from the same checkpoint?"
            )

    def train(self) -> Trained:
        """Puts adapters on twins of the models, trains them, and takes them off."""
        self.kept.events.preparing("loading")
        with ExitStack() as attachments:
            if self.device.type == "cuda":  # graphs, kernels and events belong to the current device
                attachments.enter_context(torch.cuda.device(self.device))
            learner = self.builder.fitted(self._try_out, attachments)
            attachments.callback(learner.engine.release)
            self.adapters = learner.networks.adapters
            self.kept.go_on(learner)
            self._train(learner)
        lora = self.kept.lora(takes_best=True)
        self.kept.checkpoint(is_last=True)
        self.kept.ended("finished", "")
        return Trained(lora, self.kept.events.losses, self.kept.samples, self._report())

    def _try_out(self, learner: Learner, placement: Placement) -> None:
        """The largest forward and backward pass, without a move."""
        step, micro = self.plan.largest()
        batch = replace(on_device(self.batch_source.batch(learner.networks, step, micro), self.device), bins=None)
        try:
            first = next(parts(batch, placement.pictures))
            learner.engine.step.accumulate(self.batch_source.with_live_text(learner.networks, first, step, micro))
        finally:
            learner.engine.step.reset()

    # ---------------------------------------------------------------- training

    def _train(self, learner: Learner) -> None:
        """Trains to the end, going back to the last good checkpoint where it diverges and the recipe says so."""
        if self.config.run.on_divergence == "step back" and self.kept.steps == 0:
            self.kept.checkpoint()
        while not self.kept.is_over:
            try:
                self._train_on(learner, self.kept.steps)
                return
            except Diverged as error:
                state = self.kept.way_back(error)
                if state is None:
                    raise
                self.kept.step_back(learner, state, error)

    def _train_on(self, learner: Learner, start: int) -> None:
        config, steps, nets, kept = self.config, self.plan.steps, learner.networks, self.kept
        order = (
            (step, micro) for step in range(start, steps) for micro in range(config.optimization.gradient_accumulation)
        )
        with prefetched(partial(self.batch_source.batch, nets), order, self.device) as made_at:
            if config.run.sample_every and start == 0:
                self._sample(learner, 0)
            kept.events.started()
            if kept.looked_at < start and self._is_due_at(start) and self._on_pause(learner, start):
                return

            def batch_at(step: int, micro: int) -> Batch:
                host.raise_if_interrupted()
                self.progress(kept.steps)
                draw_dropout(nets.adapters, config.adapter, config.run.seed, step, micro)
                return self.batch_source.with_live_text(nets, made_at(step, micro), step, micro)

            def on_step(step: int, loss: float, rate: float) -> None:
                if step > FEWEST_LOSSES and loss > EXPLODED * kept.events.largest > 0:
                    kept.learner = None  # it has made that step, and is nothing to keep
                    what = f"The loss is {loss:.3g}, more than {EXPLODED:g} times the largest before it,"
                    raise Diverged(what, step, config.optimization.learning_rate)
                kept.step(step, loss, rate)

            train(
                learner.engine,
                batch_at,
                config.optimization,
                steps,
                on_step,
                start=start,
                rate_factor_at=kept.rate_factor_at,
                pauses_at=self._pauses_at,
                on_pause=partial(self._on_pause, learner),
            )
        self.progress(steps)

    def _pauses_at(self, step: int) -> bool:
        return self.kept.is_checkpoint_due or self.controls.is_waiting or self._is_due_at(step)

    def _is_due_at(self, step: int) -> bool:
        return self._samples_at(step) or self._saves_at(step) or self._validates_at(step)

    def _samples_at(self, step: int) -> bool:
        every = self.config.run.sample_every
        return every > 0 and (step % every == 0 or step == self.plan.steps)

    def _saves_at(self, step: int) -> bool:
        every = self.config.run.save_every
        return every > 0 and step % every == 0 and step < self.plan.steps

    def _validates_at(self, step: int) -> bool:
        every = self.config.run.validation_every
        return self.held_out is not None and (step % every == 0 or step == self.plan.steps)

    def _on_pause(self, learner: Learner, step: int) -> bool:
        """What happens between two steps; True ends the run."""
        kept, validations = self.kept, self.kept.validations
        if self._validates_at(step):
            self._validate(learner, step)
        if self._saves_at(step):
            kept.save()
        if self._samples_at(step):
            self._sample(learner, step)
        kept.looked_at = step
        self._obey(learner, step)
        if kept.is_checkpoint_due:
            kept.checkpoint()
        kept.is_over = kept.is_over or validations.is_over
        if validations.is_over:
            kept.note(f"Ended at step {step}: {validations.patience} validations brought nothing better.")
        kept.events.started()
        return kept.is_over

    def _obey(self, learner: Learner, step: int) -> None:
        """Does what the page has asked for, as long as the run is paused."""
        controls, kept, is_waiting = self.controls, self.kept, False
        while True:
            host.raise_if_interrupted()
            if controls.take("learning_rate"):
                kept.change_rate(step, controls.rate_factor)
            if controls.take("sample_prompts"):
                kept.mark(step, "note", "other sampling prompts")
                is_waiting = False  # what may be asked for now is told anew
            if controls.take("checkpoint"):
                kept.checkpoint()
                kept.save()
            if controls.take("sample") and controls.sample_prompts:
                self._sample(learner, step)
            if controls.take("finish"):
                kept.finish_by_hand(step)
                return
            controls.take("pause")
            controls.take("resume")
            if not controls.is_paused:
                return
            if not is_waiting:
                is_waiting = True
                kept.checkpoint()
                kept.events.paused()
            time.sleep(HEARTBEAT)

    # ---------------------------------------------------------------- looking at what was learned

    def _validate(self, learner: Learner, step: int) -> None:
        """Measures the held-out pictures; the run's randomness is not touched."""
        told, nets = self.told_held_out, learner.networks
        self.kept.events.preparing("validating")
        clear_dropout(nets.adapters)
        batches = []
        with learner.in_use(), torch.no_grad():
            for number, sample in enumerate(samples_of(told.dataset)):
                host.raise_if_interrupted()
                batch = noised(told.encoded.latent(sample), self.family.prediction, self.config.run.seed, number)
                conds = [told.of(nets, sample)] * len(batch.x_0)
                cond = host.batch_conds(nets.model, conds, batch.x_0, host.training_guidance(nets.model))
                batches.append(on_device(replace(batch, cond=cond), self.device))
            loss = mean_loss(learner.predict, self.family.prediction, batches)
        self.kept.validated(step, loss)

    def _sample(self, learner: Learner, step: int) -> None:
        """One picture a prompt, with the adapters as they are; the run's randomness is not touched."""
        kept, told, nets, prompts = self.kept, self.batch_source.texts, learner.networks, self.controls.sample_prompts
        clear_dropout(nets.adapters)
        kept.drop_samples(step)
        for number, prompt in enumerate(prompts):
            kept.events.preparing("sampling", number + 1, len(prompts))
            with host.sampling_mode(), learner.in_use():
                with_prompt, without = told.of_prompt(nets, prompt), told.of_prompt(nets, "")
                pixels = self.sampler.draw(nets.model, learner.predict, with_prompt, without, number)
            kept.sampled(SamplePicture(step, prompt, pixels), number)
        if prompts:
            kept.mark(step, "sample")
        kept.events.started()

    def _report(self) -> str:
        base = (
            f"{host.base_version(self.model)[1]}, {self.family.prediction.name} prediction, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
        )
        if self.config.run.base_precision != "as loaded":
            base += f", linear weights in {self.config.run.base_precision}"
        return run_report(
            self.name, self.config, self.dataset, self.adapters, self.kept.events.losses, self.kept.events.elapsed,
            base, self.device, self.notes,
        )  # fmt: skip
