"""Pauses of the training loop between two steps: validation, saving, sampling, the page's requests, checkpoints."""

import time
from dataclasses import dataclass, replace

import torch

from .. import host
from ..adapters.dropout import clear_dropout
from ..basics.randomness import seed_generators
from ..learning.prefetch import on_device
from ..model.learner import Learner
from .prepare import Inputs, Prepared
from .progress import SamplePicture
from .recorder import Recorder
from .sampling import Sampler
from .validation import mean_loss, noised, samples_of

HEARTBEAT = 0.1
"""seconds between two looks at the controls of a paused run"""


@dataclass(frozen=True)
class Pauses:
    """Decides after which steps the loop pauses, and does what is due there."""

    prepared: Prepared
    inputs: Inputs
    learner: Learner
    recorder: Recorder
    sampler: Sampler

    def is_wanted(self, step: int) -> bool:
        """Whether the loop pauses after a step."""
        return self.recorder.is_checkpoint_due or self.recorder.controls.has_requests or self.is_due(step)

    def is_due(self, step: int) -> bool:
        """Whether the recipe asks for validation, saving or sampling after a step."""
        return self._validates_at(step) or self._saves_at(step) or self._samples_at(step)

    def pause(self, step: int) -> bool:
        """Does what is due after a step. True: the run ends here."""
        recorder, progress = self.recorder, self.recorder.progress
        if self._validates_at(step):
            self.validate(step)
        if self._saves_at(step):
            recorder.save()
        if self._samples_at(step):
            self.sample(step)
        progress.completed = step
        self._do_requests(step)
        if recorder.is_checkpoint_due:
            recorder.checkpoint()
        patience = self.prepared.config.run.validation_patience
        if progress.is_patience_exhausted(patience):
            progress.is_over = True
            self.prepared.notes.add(f"Ended at step {step}: {patience} validations brought nothing better.")
        recorder.show("training")
        return progress.is_over

    def validate(self, step: int) -> None:
        """Measures the loss on the held-out pictures. The random choices of training do not depend on it."""
        conditions, networks, progress = self.inputs.held_out, self.learner.networks, self.recorder.progress
        assert conditions is not None
        self.recorder.show("validating")
        clear_dropout(networks.adapters)
        prediction, run = self.prepared.base.family.prediction, self.prepared.config.run
        batches = []
        with self.learner.in_use(), torch.no_grad():
            for number, sample in enumerate(samples_of(conditions.dataset)):
                host.raise_if_interrupted()
                batch = noised(conditions.encoded.latent(sample), prediction, run.seed, number)
                conds = [conditions.of(networks, sample)] * len(batch.x_0)
                cond = host.batch_conds(networks.model, conds, batch.x_0, host.training_guidance(networks.model))
                batches.append(on_device(replace(batch, cond=cond), self.prepared.base.device, self.prepared.notes.add))
            seed_generators(run.seed, "validation", "model")
            loss = mean_loss(self.learner.predict, prediction, batches)
        if progress.add_validation(step, loss) and run.keep_best:
            progress.best = self.recorder.writer.tensors(self.learner)
        self.recorder.validated()

    def sample(self, step: int) -> None:
        """Draws one picture per prompt with the adapters as they are. Training's random choices do not depend on it."""
        recorder, networks, conditions = self.recorder, self.learner.networks, self.inputs.batches.texts
        prompts = recorder.controls.sample_prompts
        clear_dropout(networks.adapters)
        recorder.progress.drop_samples(step)
        for number, prompt in enumerate(prompts):
            recorder.show("sampling", number + 1, len(prompts))
            with host.sampling_mode(), self.learner.in_use():
                cond, empty = (conditions.of_prompt(networks, text) for text in (prompt, ""))
                pixels = self.sampler.draw(networks.model, self.learner.predict, cond, empty, number)
            picture = SamplePicture(step, prompt, pixels)
            recorder.progress.pictures.append(picture)
            recorder.sampled(picture, number)
        if prompts:
            recorder.mark(step, "sample")
        recorder.show("training")

    def _do_requests(self, step: int) -> None:
        """Does what the page has requested; while the run is paused, waits for more."""
        recorder, progress, controls = self.recorder, self.recorder.progress, self.recorder.controls
        is_paused = False
        while True:
            host.raise_if_interrupted()
            if controls.take("learning_rate"):
                progress.rate_changes.append((step, controls.rate_factor))
                recorder.mark(step, "learning_rate", f"x {controls.rate_factor:g}")
            if controls.take("sample_prompts"):
                recorder.mark(step, "note", "other sampling prompts")
                is_paused = False  # shows the page which controls there are now
            if controls.take("checkpoint"):
                recorder.checkpoint()
                recorder.save()
            if controls.take("sample") and controls.sample_prompts:
                self.sample(step)
            if controls.take("finish"):
                progress.is_over = True
                recorder.finished_by_hand()
                return
            controls.take("pause")
            controls.take("resume")
            if not controls.is_paused:
                return
            if not is_paused:
                is_paused = True
                recorder.checkpoint()
                recorder.show("paused")
            time.sleep(HEARTBEAT)

    def _validates_at(self, step: int) -> bool:
        every = self.prepared.config.run.validation_every
        return self.inputs.held_out is not None and (step % every == 0 or step == self.prepared.data.plan.steps)

    def _saves_at(self, step: int) -> bool:
        every = self.prepared.config.run.save_every
        return every > 0 and step % every == 0 and step < self.prepared.data.plan.steps

    def _samples_at(self, step: int) -> bool:
        every = self.prepared.config.run.sample_every
        return every > 0 and (step % every == 0 or step == self.prepared.data.plan.steps)
