"""A whole run: from the graph's MODEL, CLIP, VAE and data to a LoRA."""

import contextlib
import errno
import math
import os
import platform
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import host
from .adapters import KINDS, Adapter
from .advice import advice
from .attach import (
    Target,
    check_dropout,
    clear_dropout,
    draw_dropout,
    is_convolution,
)
from .batches import Batch, Plan, make_batch
from .cache import Cache, open_cache
from .checkpoints import Damaged, State, forget, newest_state
from .config import LoRAConfig
from .continuing import continued
from .controls import Controls
from .dataset import Dataset, Sample
from .determinism import deterministic_kernels
from .encode import Encoded, encode_samples, latent_spread, sized
from .events import RunEvents
from .export import AS_TRAINED, in_precision, lora_tensors, save_lora
from .fitting import Placement, parts
from .layer_rules import check_layer_rules, parse_layer_rules, rule_for
from .learner import Builder, Learner, Networks
from .loop import Diverged, train
from .lora_files import PARTIAL, partial_files
from .lora_model import LoRAModel
from .metadata import RunFacts, lora_metadata
from .objective import zero_terminal_sigmas
from .optimizers import check_optimizer
from .origin import Origin, dataset_facts, lora_digest
from .past import Past, past_of
from .prefetch import on_device, prefetched
from .problems import InputError, raise_if_any
from .report import data_facts, notes_about, run_report
from .run_folder import ANEW, CONTINUE_CHANGED, HOW_TO_TRAIN_THE_REST, Opened, open_run
from .sampling import Sampler
from .validation import Validations, hold_out, mean_loss, noised, samples_of

OUT_OF_MEMORY = (
    "The GPU's memory is full. In LoRA Config turn gradient_checkpointing on, lower batch_size or choose "
    "fewer targets; or lower resolution in Load Dataset."
)
OUT_OF_RAM = (
    "The computer's memory (RAM) is full. Close other programs; or in LoRA Config lower batch_size or rank, or choose "
    "fewer targets; or lower resolution in Load Dataset."
)
MOST_STEPS_BACK = 3
"""times a run goes back to its last good checkpoint when it diverges"""
EXPLODED, FEWEST_LOSSES = 100.0, 20
"""times the largest of the losses before, of which there are so many, a loss is an explosion"""
HEARTBEAT = 0.1
"""seconds between two looks at a paused run's controls"""


@dataclass(frozen=True)
class SamplePicture:
    """A picture drawn on the way."""

    step: int
    prompt: str
    pixels: torch.Tensor
    """(H, W, 3) in [0, 1]"""


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
    with host.training_mode(), deterministic_kernels(config.deterministic), open_cache() or nullcontext() as cache:
        run = _Run(model, clip, vae, dataset, config, name, start)
        with run.opened(previous, workflow, cache), run.kept_on_failure():
            host.check_compatible(run.model, run.clip, vae)
            encoded = run.encode(cache)
            host.make_room(run.device)
            return run.train(encoded)


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
    samples: list[SamplePicture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    learner: Learner | None = None
    rate_changes: list[tuple[int, float]] = field(default_factory=list)
    """(step, what the recipe's learning rate is multiplied by from it on)"""
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    """the LoRA of the best validation, where it is to be kept"""
    looked_at: int = 0
    """the last step at whose end all was done that was due there"""
    is_over: bool = False
    """whether the run ended before its last step because it was told to"""
    steps_back: int = 0
    """times it diverged and went back"""

    def __post_init__(self) -> None:
        self.given = self.dataset, self.config
        self.names = host.layer_names(self.model, self.clip)
        if self.start is not None:
            self._continue(self.start)
        self.trains_text = self.config.text_encoder_learning_rate > 0
        self.family = host.family(self.model)
        self.device = host.training_device(self.model)
        if self.config.zero_terminal_snr and self.family.prediction == "v":
            self.family = replace(self.family, sigmas=zero_terminal_sigmas(self.family.sigmas))
        self.dataset, self.held_out = hold_out(self.dataset, self.config)
        self.builder = Builder(
            self.model, self.clip, self.config, self.family, self.names, self.adapters, len(self.dataset.pictures),
            self._note,
        )  # fmt: skip
        self.dtype = self.builder.dtype
        self._check_recipe()
        self.plan = Plan(self.dataset, self.config)
        if self.config.warmup_steps(self.plan.steps) >= self.plan.steps:
            raise_if_any(
                "LoRA Config",
                [f"warmup is {self.config.warmup:g} of {self.plan.steps} steps: it must end before the run does."],
            )
        self.controls = Controls(self.config.sample_prompts)
        self.validations = Validations(patience=self.config.validation_patience)
        self.progress = host.progress_bar(self.plan.steps)
        self.sized = host.wants_size_conditioning(self.model)
        self.sampler = Sampler(self.model, self.vae, self.config, self.dataset.settings.resolution, self.device)
        self.started_at = time.time()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.notes += [*self.dataset.problems, *host.warnings_about(self.model)]
        for note in self.notes:
            host.say("%s", note)

    def _continue(self, start: Mapping[str, torch.Tensor]) -> None:
        """Takes over the adapters of a LoRA; what of it is not trained goes into MODEL and CLIP for the run."""
        found = continued(start, self.names, self.config, self.model.model, self.clip.cond_stage_model)
        self.adapters, self.frozen, self.config = found.adapters, found.frozen, found.config
        self.notes += found.notes
        if self.frozen:
            self.model, self.clip = host.with_lora(self.model, self.clip, self.frozen, 1.0)

    def _check_recipe(self) -> None:
        """Refuses, before anything is encoded, what could not be trained; notes what has no effect."""
        config, rules = self.config, parse_layer_rules(self.config.layer_rules)
        if config.zero_terminal_snr and self.family.prediction != "v":
            problem = (
                f"zero_terminal_snr is on, but the model predicts {self.family.prediction}: "
                "only v-prediction models can start from pure noise. Turn it off."
            )
            raise_if_any("LoRA Config", [problem])
        text_encoder = self.clip.cond_stage_model if self.trains_text else None
        targets: list[Target] = self.builder.targets_of(self.model.model, text_encoder)
        if self.start is None:
            check_layer_rules(rules, [target.name for target in targets])
        check_dropout(self.adapters.values() or [KINDS[config.adapter]], config)
        rates = {config.learning_rate * rule_for(rules, target.name).learning_rate for target in targets}
        check_optimizer(config, sorted(rates | ({config.text_encoder_learning_rate} if self.trains_text else set())))
        self.notes += notes_about(config, self.family.prediction, any(map(is_convolution, targets)))
        self.notes += advice(config, host.base_version(self.model)[0], self.dataset)

    # ---------------------------------------------------------------- the run's folder, from its beginning to its end

    @contextmanager
    def opened(self, previous: str, workflow: str, cache: Cache | None) -> Iterator[None]:
        """Opens the run's folder, and says how the run went when it is over."""
        dataset, config = self.given
        models = {
            "model": host.model_fingerprint(self.model), "clip": host.model_fingerprint(self.clip),
            "vae": host.model_fingerprint(self.vae), "start": lora_digest(self.start),
        }  # fmt: skip
        origin = Origin(config, dataset_facts(dataset, cache), models)
        self.origin = origin
        root = host.runs_root()
        self.run: Opened = open_run(root, self.name, origin, previous)
        self.folder = self.run.folder
        with closing(self.folder):
            self.events = RunEvents(
                self.plan.steps, self.name, self.folder.id, workflow, self.controls, self.plan.epoch_of,
                self.picture_rows,
            )  # fmt: skip
            try:
                self.events.notes = self.notes
                for note in self.run.notes:
                    self._note(note)
                self.checkpointed_at = time.monotonic()
                self._restore_history()
                self.folder.own(
                    {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
                )
                self.folder.record(self._record(workflow, origin))
                yield
            finally:
                with contextlib.suppress(RuntimeError):  # after a CUDA error, which was raised where it was met
                    self.events.let_go()
                self.learner = None

    def _record(self, workflow: str, origin: Origin) -> dict[str, Any]:
        """What run.json says at the beginning."""
        return {
            "run": self.folder.id, "name": self.name, "state": "running", "message": "",
            "workflow_id": workflow, "prompt_id": self.events.prompt_id, "node_id": self.events.node_id,
            "steps": self.plan.steps, "epochs": self.plan.epoch_of(self.plan.steps - 1) + 1,
            "started_at": self.started_at, "elapsed": 0.0, "notes": [], **origin.plain(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }  # fmt: skip

    def _restore_history(self) -> None:
        """Takes over what a stopped run had told and drawn."""
        state = self.run.state
        if state is None or not self.run.is_same:
            return
        try:
            with refused(state):
                past = past_of(state)
        except InputError as error:
            self.events.ended("failed", str(error))
            raise
        self.events.restore(self.folder.cut_metrics(state.step), past.losses, past.elapsed)
        self.rate_changes, self.steps_back = past.rate_changes, past.steps_back
        self.controls.rate_factor = self._rate_factor_at(state.step)
        self.controls.sample_prompts = past.sample_prompts
        self.is_over = past.is_over and not self.run.trains_rest
        self._restore_looks(past)
        for sample in self.events.samples:
            pixels = self.folder.picture(str(sample.get("filename")))
            if pixels is not None:
                self.samples.append(SamplePicture(int(sample["step"]), str(sample["prompt"]), pixels))

    def _restore_looks(self, past: Past) -> None:
        """Takes over what was seen of the LoRA up to a step."""
        self.validations.losses, self.best, self.looked_at = past.validations, past.best, past.looked_at

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Writes what was learned when the run ends early, and tells the page how it ended."""
        try:
            yield
        except host.Interrupted:
            self._ended("interrupted", self._keep())
            raise
        except Diverged as error:
            self._ended("failed", f"{error} {self._keep(is_good=False)}".strip())
            raise
        except Exception as error:
            better = full_memory(error)
            self._ended("failed", f"{better or error} {self._keep()}".strip())
            if better is not None:
                raise better from error
            raise

    def _ended(self, state: str, message: str) -> None:
        self._tell_unwritten()
        self.folder.record({"state": state, "message": message, "elapsed": self.events.elapsed, "notes": self.notes})
        self._tell_unwritten()
        self.events.ended(state, message)

    def _tell_unwritten(self) -> None:
        for note in self.folder.notes:
            self._note(note)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)
            host.say("%s", note)

    # ---------------------------------------------------------------- preparing

    def encode(self, cache: Cache | None) -> Encoded:
        """Latents and embeddings of all that the run will see."""

        def on_progress(what: str, done: int, total: int) -> None:
            host.raise_if_interrupted()
            self.events.preparing("encoding", done + 1, total, what)

        prompts = ["", *self.controls.sample_prompts] if self.config.sample_every else []
        given = self.model, self.clip, self.vae, on_progress, cache, not self.trains_text
        encoded = encode_samples(self.dataset, self.plan.all_samples(), prompts, *given)
        if self.held_out is not None:
            self.held_out_encoded = encode_samples(self.held_out, samples_of(self.held_out), [], *given)
        self.notes += cache.notes if cache is not None else []
        if dataset_facts(self.given[0], cache) != self.origin.dataset:
            raise_if_any("The dataset", ["pictures, masks or captions changed while they were read: queue again."])
        spread = latent_spread(encoded)
        if not 0.4 < spread < 2.5:
            self._note(
                f"The latents' standard deviation is {spread:.2f} where about 1 is usual: "
                "do MODEL and VAE come from the same checkpoint?"
            )
        return encoded

    def train(self, encoded: Encoded) -> Trained:
        """Puts adapters on twins of the models, trains them, and takes them off."""
        self.events.preparing("loading")
        with ExitStack() as attachments:
            if self.device.type == "cuda":  # graphs, kernels and events belong to the current device
                attachments.enter_context(torch.cuda.device(self.device))
            learner = self.builder.fitted(partial(self._try_out, encoded), attachments)
            attachments.callback(learner.engine.release)
            self.adapters = learner.nets.adapters
            self._load(learner, self.run.state)
            self._train(learner, encoded)
        lora = self._lora(takes_best=True)
        if self._checkpoint(is_last=True) is not None:
            self._drop_partials()
        self._ended("finished", "")
        return Trained(lora, self.events.losses, self.samples, self._report())

    def _try_out(self, encoded: Encoded, learner: Learner, placement: Placement) -> None:
        """The largest forward and backward pass, without a move."""
        step, micro = self.plan.largest()
        batch = replace(on_device(self._batch(learner.nets, encoded, step, micro), self.device), cells=None)
        try:
            first = next(parts(batch, placement.pictures))
            learner.engine.step.accumulate(self._with_live_text(learner.nets, encoded, first, step, micro))
        finally:
            learner.engine.step.forget()

    # ---------------------------------------------------------------- training

    def _train(self, learner: Learner, encoded: Encoded) -> None:
        """Trains to the end, going back to the last good checkpoint where it diverges and the recipe says so."""
        if self.config.on_divergence == "step back" and not self.events.losses:
            self._checkpoint()
        while not self.is_over:
            try:
                self._train_on(learner, encoded, len(self.events.losses))
                return
            except Diverged as error:
                forget(self.folder.checkpoints, error.spoilt)
                if self.config.on_divergence != "step back" or self.steps_back >= MOST_STEPS_BACK:
                    raise
                # From the very step before it would take the same step again: no rate changes its gradients.
                state, _ = newest_state(self.folder.checkpoints, before=error.step - 1)
                if state is None:
                    raise
                self._step_back(learner, state, error)

    def _train_on(self, learner: Learner, encoded: Encoded, start: int) -> None:
        config, steps, nets = self.config, self.plan.steps, learner.nets
        order = ((step, micro) for step in range(start, steps) for micro in range(config.gradient_accumulation))
        with prefetched(partial(self._batch, nets, encoded), order, self.device) as made_at:
            if config.sample_every and start == 0:
                self._sample(learner, encoded, 0)
            self.events.started()
            if self.looked_at < start and self._is_due_at(start) and self._on_pause(learner, encoded, start):
                return

            def batch_at(step: int, micro: int) -> Batch:
                host.raise_if_interrupted()
                self.progress(len(self.events.losses))
                draw_dropout(nets.adapters, config, step, micro)
                return self._with_live_text(nets, encoded, made_at(step, micro), step, micro)

            def on_step(step: int, loss: float, rate: float) -> None:
                if step > FEWEST_LOSSES and loss > EXPLODED * self.events.largest > 0:
                    self.learner = None  # it has made that step, and is nothing to keep
                    what = f"The loss is {loss:.3g}, more than {EXPLODED:g} times the largest before it,"
                    raise Diverged(what, step, config.learning_rate)
                self.folder.log({"step": step, "loss": loss, "learning_rate": rate})
                self.events.step(loss, rate)

            train(
                learner.engine, batch_at, config, steps, on_step, self._pauses_at,
                partial(self._on_pause, learner, encoded), start, self._rate_factor_at,
            )  # fmt: skip
        self.progress(steps)

    def _pauses_at(self, step: int) -> bool:
        is_late = time.monotonic() - self.checkpointed_at >= 60.0 * self.config.checkpoint_minutes
        return is_late or self.controls.is_waiting or self._is_due_at(step)

    def _is_due_at(self, step: int) -> bool:
        return self._samples_at(step) or self._saves_at(step) or self._validates_at(step)

    def _samples_at(self, step: int) -> bool:
        every = self.config.sample_every
        return every > 0 and (step % every == 0 or step == self.plan.steps)

    def _saves_at(self, step: int) -> bool:
        every = self.config.save_every
        return every > 0 and step % every == 0 and step < self.plan.steps

    def _validates_at(self, step: int) -> bool:
        every = self.config.validation_every
        return self.held_out is not None and (step % every == 0 or step == self.plan.steps)

    def _on_pause(self, learner: Learner, encoded: Encoded, step: int) -> bool:
        """What happens between two steps; True ends the run."""
        if self._validates_at(step):
            self._validate(learner, self.held_out_encoded, step)
        if self._saves_at(step):
            self._save()
        if self._samples_at(step):
            self._sample(learner, encoded, step)
        self.looked_at = step
        self._obey(learner, encoded, step)
        if time.monotonic() - self.checkpointed_at >= 60.0 * self.config.checkpoint_minutes:
            self._checkpoint()
        self.is_over = self.is_over or self.validations.is_over
        if self.validations.is_over:
            self._note(f"Ended at step {step}: {self.validations.patience} validations brought nothing better.")
        self.events.started()
        return self.is_over

    def _obey(self, learner: Learner, encoded: Encoded, step: int) -> None:
        """Does what the page has asked for, as long as the run is paused."""
        controls, is_waiting = self.controls, False
        while True:
            host.raise_if_interrupted()
            if controls.take("learning_rate"):
                self.rate_changes.append((step, controls.rate_factor))
                self._mark(step, "learning_rate", f"x {controls.rate_factor:g}")
            if controls.take("sample_prompts"):
                self._mark(step, "note", "other sampling prompts")
            if controls.take("checkpoint"):
                self._checkpoint()
                self._save()
            if controls.take("sample") and controls.sample_prompts:
                self._sample(learner, encoded, step)
            if controls.take("finish"):
                self.is_over = True
                self._mark(step, "note", "finished by hand")
                self._note(f"Finished by hand at step {step} of {self.plan.steps}. {HOW_TO_TRAIN_THE_REST}")
                return
            controls.take("pause")
            controls.take("resume")
            if not controls.is_paused:
                return
            if not is_waiting:
                is_waiting = True
                self._checkpoint()
                self.events.paused()
            time.sleep(HEARTBEAT)

    def _rate_factor_at(self, step: int) -> float:
        return next((factor for since, factor in reversed(self.rate_changes) if since <= step), 1.0)

    def _step_back(self, learner: Learner, state: State, error: Diverged) -> None:
        self._load(learner, state)
        with refused(state):
            self._restore_looks(past_of(state))
        self.folder.cut_metrics(state.step)
        self.events.cut(state.step)
        self.samples = [each for each in self.samples if each.step <= state.step]
        self.steps_back += 1
        self.controls.rate_factor = 0.5 * self._rate_factor_at(state.step)
        self.rate_changes.append((state.step, self.controls.rate_factor))
        self._mark(state.step, "learning_rate", f"x {self.controls.rate_factor:g}")
        self._note(f"{error} Went back to step {state.step} with the learning rate x {self.controls.rate_factor:g}.")
        self._checkpoint()  # in place of those of the way that was given up

    def _mark(self, step: int, kind: str, text: str = "") -> None:
        self.events.mark(step, kind, text)
        self.folder.log({"step": step, "mark": kind, "text": text})

    # ---------------------------------------------------------------- checkpoints

    def _checkpoint(self, is_last: bool = False) -> Path | None:
        """All that the run needs to go on from here; None where it cannot be written now."""
        assert self.learner is not None
        step = len(self.events.losses)
        self.events.preparing("saving")
        past = Past(
            self.events.losses, self.events.elapsed, self.rate_changes, self.controls.sample_prompts,
            self.validations.losses, self.is_over or is_last, self.looked_at, self.best, self.steps_back,
        )  # fmt: skip
        path = self.folder.checkpoint(past.put_into(*self.learner.state()), self.config.keep_checkpoints)
        self.checkpointed_at = time.monotonic()
        if path is not None:
            self.events.mark(step, "checkpoint")
        self._tell_unwritten()
        return path

    def _load(self, learner: Learner, state: State | None) -> None:
        """Goes on from a state, if there is one.

        Raises:
            InputError: it does not fit this recipe.
        """
        self.learner = None  # half loaded it would be kept in place of the checkpoint
        if state is not None:
            with refused(state):
                learner.load(state.tensors, state.facts, self.run.is_same)
        self.learner = learner

    def _keep(self, is_good: bool = True) -> str:
        """Keeps what was learned when a run ends early. Gives where, in words.

        Args:
            is_good: whether the run may go on from here.
        """
        steps = len(self.events.losses)
        told = []
        if not is_good:
            state, _ = newest_state(self.folder.checkpoints)
            told.append(
                f"With previous_run {CONTINUE_CHANGED!r} a better recipe goes on from step {state.step}."
                if state is not None
                else "No checkpoint is left to go on from: a better recipe starts anew."
            )
        if steps == 0 or self.learner is None:
            return " ".join(told) if steps else "Nothing was learned yet."
        try:
            if is_good and self._checkpoint() is not None:
                told.append(f"Queue the workflow again, and it goes on from step {steps}.")
        except Exception as error:  # whatever stopped the run comes first
            told.append(f"No checkpoint of step {steps} could be made: {error}")
        try:
            path = self._save(PARTIAL, takes_best=True)
            self._drop_partials(but=path)
            told.append(f"What was learned in {self._step_of_lora(takes_best=True)} steps is kept in {path}.")
        except Exception as error:  # likewise
            told.append(f"What was learned in {steps} steps could not be saved as a LoRA: {error}")
        return " ".join(told)

    def _drop_partials(self, but: str = "") -> None:
        """Deletes what earlier stops of this very run kept, once something later has taken its place."""
        for path in partial_files(host.lora_folder(), self.name, self.folder.id):
            if str(path) != but:
                with contextlib.suppress(OSError):
                    path.unlink()
                    host.say("deleted %s: a later LoRA of the same run takes its place", path)

    # ---------------------------------------------------------------- batches

    def _batch(self, nets: Networks, encoded: Encoded, step: int, micro: int) -> Batch:
        """A batch on the CPU; without its condition where the text encoders are trained."""
        samples = self.plan.samples_at(step, micro)

        def conds_for(latents: torch.Tensor) -> Any:
            if nets.text_encoder is not None:
                return None
            conditionings = [encoded.conditioning(self.dataset, sample, self.sized) for sample in samples]
            return host.batch_conds(nets.model, conditionings, latents, host.TRAINING_GUIDANCE)

        return make_batch(
            [encoded.latent(sample) for sample in samples],
            [self.dataset.loss_weight(sample) for sample in samples],
            [encoded.mask(sample) for sample in samples],
            conds_for, self.family, self.config, step, micro, [sample.picture for sample in samples],
        )  # fmt: skip

    def _with_live_text(self, nets: Networks, encoded: Encoded, batch: Batch, step: int, micro: int) -> Batch:
        """The batch with a condition that carries the text encoders' graph, where they are trained."""
        if nets.text_encoder is None:
            return batch
        samples = self.plan.samples_at(step, micro)
        conditionings = [self._conditioning(nets, encoded, self.dataset, sample) for sample in samples]
        cond = host.batch_conds(nets.model, conditionings, batch.x_0, host.TRAINING_GUIDANCE)
        return replace(batch, cond=cond)

    # ---------------------------------------------------------------- looking at what was learned

    def _validate(self, learner: Learner, encoded: Encoded, step: int) -> None:
        """Measures the held-out pictures; the run's randomness is not touched."""
        assert self.held_out is not None
        self.events.preparing("validating")
        clear_dropout(learner.nets.adapters)
        batches = []
        with learner.in_use(), torch.no_grad():
            for number, sample in enumerate(samples_of(self.held_out)):
                host.raise_if_interrupted()
                batch = noised(encoded.latent(sample), self.family, self.config.seed, number)
                told = self._conditioning(learner.nets, encoded, self.held_out, sample)
                cond = host.batch_conds(learner.nets.model, [told] * len(batch.x_0), batch.x_0, host.TRAINING_GUIDANCE)
                batches.append(on_device(replace(batch, cond=cond), self.device))
            loss = mean_loss(learner.predict, self.family, batches)
        self.validations.losses = [each for each in self.validations.losses if each[0] != step]
        if self.validations.add(step, loss) and self.config.keep_best:
            self.best = self._tensors()
        self.events.validated(step, loss)
        if math.isfinite(loss):
            self.folder.log({"step": step, "validation_loss": loss})

    def _conditioning(self, nets: Networks, encoded: Encoded, dataset: Dataset, sample: Sample) -> Any:
        """What a sample tells the model; with the text encoders' graph where they are trained."""
        if nets.text_encoder is None:
            return encoded.conditioning(dataset, sample, self.sized)
        return sized(host.encode_text_with(self.clip, nets.text_encoder, sample.caption), dataset, sample, self.sized)

    def _sample(self, learner: Learner, encoded: Encoded, step: int) -> None:
        """One picture a prompt, with the adapters as they are; the run's randomness is not touched."""
        clear_dropout(learner.nets.adapters)
        prompts = self.controls.sample_prompts
        self.samples = [each for each in self.samples if each.step != step]  # of a stop in the middle of them
        self.events.drop_samples(step)
        for number, prompt in enumerate(prompts):
            self.events.preparing("sampling", number + 1, len(prompts))
            with host.sampling_mode(), learner.in_use():
                told = self._prompt_conditioning(learner.nets, encoded, prompt)
                untold = self._prompt_conditioning(learner.nets, encoded, "")
                pixels = self.sampler.draw(learner.nets.model, learner.predict, told, untold, number)
            self.samples.append(SamplePicture(step, prompt, pixels))
            self._keep_sample(self.samples[-1], number)
        if prompts:
            self._mark(step, "sample")
        self.events.started()

    def _prompt_conditioning(self, nets: Networks, encoded: Encoded, prompt: str) -> Any:
        if nets.text_encoder is None:
            return encoded.prompt(prompt)
        return host.encode_text_with(self.clip, nets.text_encoder, prompt, is_prompt=True)

    def _keep_sample(self, sample: SamplePicture, number: int) -> None:
        path = self.folder.keep_picture(f"step{sample.step:06}-{number}.png", sample.pixels)
        self._tell_unwritten()
        if path is not None:
            filename, subfolder = host.output_place(path)
            told = {
                "step": sample.step, "prompt": sample.prompt, "prompt_index": number, "filename": filename,
                "subfolder": subfolder,
            }  # fmt: skip
            self.folder.log({"step": sample.step, "sample": told})
            self.events.sampled(told)

    def picture_rows(self) -> list[dict[str, Any]]:
        """Each picture with its loss against the average at the same noise levels, the worst first."""
        if self.learner is None:
            return []
        rows = [
            {
                "name": picture.name,
                "caption": self.dataset.caption(index),
                "loss": loss,
                "count": count,
                "thumbnail": host.thumbnail_address(picture.path),
            }  # fmt: skip
            for index, (picture, (loss, count)) in enumerate(
                zip(self.dataset.pictures, self.learner.picture_losses.relative(), strict=True)
            )
        ]
        return sorted(rows, key=lambda row: -(row["loss"] or 0.0))

    # ---------------------------------------------------------------- the LoRA

    def _tensors(self) -> dict[str, torch.Tensor]:
        """The LoRA's as it is now."""
        assert self.learner is not None
        with self.learner.in_use():
            return lora_tensors(self.adapters, self.names)

    def _step_of_lora(self, takes_best: bool) -> int:
        best = self.validations.best if takes_best and self.best else None
        return best[0] if best else len(self.events.losses)

    def _lora(self, takes_best: bool = False) -> LoRAModel:
        """The LoRA as it is now.

        Args:
            takes_best: as it was at its best, where that is to be kept.
        """
        tensors = (takes_best and self.best) or self._tensors()
        version, architecture = host.base_version(self.model)
        step = self._step_of_lora(takes_best)
        facts = RunFacts(
            self.name, version, architecture, self.family.prediction, step, self.plan.steps,
            self.plan.epoch_of(max(0, step - 1)) + 1, self.plan.epoch_of(self.plan.steps - 1) + 1, self.started_at,
            time.time(), "fp32" if self.dtype == torch.float32 else "bf16",
            clip_skip=host.clip_skip(self.clip), session=self.folder.id,
        )  # fmt: skip
        metadata = lora_metadata(self.config, facts, data_facts(self.dataset))
        layers = {names.kohya: names for names in self.names.values()}
        return LoRAModel({**self.frozen, **tensors}, metadata, self.name, layers, self.config.save_precision)

    def _save(self, suffix: str = "", takes_best: bool = False) -> str:
        lora = in_precision(self._lora(takes_best), AS_TRAINED)
        name = f"{self.name}-step{self._step_of_lora(takes_best):06}{suffix}.safetensors"
        path = save_lora(host.lora_folder() / name, lora, lora.metadata)
        host.say("wrote %s", path)
        self.events.resume_clock()
        return str(path)

    def _report(self) -> str:
        base = (
            f"{host.base_version(self.model)[1]}, {self.family.prediction} prediction, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}"
            f"{', linear weights in fp8' if self.config.base_precision == 'fp8' else ''}"
        )
        return run_report(
            self.name, self.config, self.dataset, self.adapters, self.events.losses, time.time() - self.started_at,
            base, self.device, self.notes,
        )  # fmt: skip


@contextmanager
def refused(state: State) -> Iterator[None]:
    """Says what to do about a checkpoint that a run cannot go on from.

    Raises:
        InputError: in place of `Damaged`.
    """
    try:
        yield
    except Damaged as error:
        problem = (
            f"previous_run: the run that stopped at step {state.step} cannot be continued with this recipe "
            f"({error}). Undo the changes, or choose to start anew."
        )
        raise InputError("Train LoRA", [problem]) from error


def full_memory(error: Exception) -> Exception | None:
    """In place of an error that says that memory is full one that says what to do; None: it is another."""
    if isinstance(error, torch.OutOfMemoryError):
        return torch.OutOfMemoryError(OUT_OF_MEMORY)
    is_ram = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    is_ram = is_ram or "can't allocate memory" in str(error)  # as PyTorch says it
    return MemoryError(OUT_OF_RAM) if is_ram else None
