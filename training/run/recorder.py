"""How a run is kept: in its folder and before the page's eyes while it goes on, as a LoRA file when it ends early.

What the keeper knows of a run goes into each checkpoint (`Past`), and from there into the run that goes on.
"""

import contextlib
import errno
import math
import os
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .. import host
from ..basics.errors import InputError
from ..learning.loop import Diverged
from ..lora.files import PARTIAL, delete_partials
from ..lora.lora import LoRAModel
from ..model.learner import Learner
from ..model.state import Damaged
from .checkpoints import State, forget, newest_state
from .controls import Controls
from .folder import CONTINUE_CHANGED, Opened, how_to_train_the_rest
from .live import RunEvents
from .lora_writer import Maker
from .origin import Origin
from .progress import Past, Validations, past_of
from .sampling import SamplePicture

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


class Keeper:
    """What a run has come to so far.

    Args:
        opened: the run's folder, and where the run begins.
        maker: of its LoRA.
        controls: what the page may ask of it.
        notes: what a person should know of it, said already.
        workflow: id of the workflow that it is of, for the page.
    """

    def __init__(self, opened: Opened, maker: Maker, controls: Controls, notes: list[str], workflow: str):
        plan = maker.plan
        self.opened, self.maker, self.controls, self.notes = opened, maker, controls, notes
        self.folder, self.config = opened.folder, maker.config
        self.events = RunEvents(
            plan.steps, maker.name, self.folder.id, workflow, controls, plan.epoch_of, self.picture_rows
        )
        self.events.notes = notes
        self.learner: Learner | None = None
        """None: there is nothing to keep"""
        self.samples: list[SamplePicture] = []
        self.validations = Validations(patience=self.config.run.validation_patience)
        self.best: dict[str, torch.Tensor] = {}
        """the LoRA of the best validation, where it is to be kept"""
        self.rate_changes: list[tuple[int, float]] = []
        """(step, what the recipe's learning rate is multiplied by from it on)"""
        self.looked_at = 0
        """the last step at whose end all was done that was due there"""
        self.is_over = False
        """whether the run ended before its last step because it was told to"""
        self.steps_back = 0
        """times it diverged and went back"""
        self.checkpointed_at = time.monotonic()

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return len(self.events.losses)

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether the last one is as old as the recipe lets it become."""
        return time.monotonic() - self.checkpointed_at >= 60.0 * self.config.run.checkpoint_minutes

    def rate_factor_at(self, step: int) -> float:
        """What the recipe's learning rate is multiplied by at a step."""
        return next((factor for since, factor in reversed(self.rate_changes) if since <= step), 1.0)

    # ---------------------------------------------------------------- from the beginning to the end

    @contextmanager
    def keeping(self, origin: Origin) -> Iterator[None]:
        """Takes over what a stopped run had told, keeps what was learned when this one ends early, and lets go of it.

        Raises:
            InputError: the checkpoint of the stopped run says nothing that a run can go on from.
        """
        try:
            for note in self.opened.notes:
                self.note(note)
            self._restore()
            self.folder.own(
                {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            )
            self.folder.record(self._record(origin))
            with self._kept_on_failure():
                yield
        finally:
            with contextlib.suppress(RuntimeError):  # after a CUDA error, which was raised where it was met
                self.events.let_go()
            self.learner = None

    def finish_by_hand(self, step: int) -> None:
        """The run is over, since a person wants it so; what it would have trained yet can be trained later."""
        self.is_over = True
        self.folder.record({"finished_by_hand": True, "trains_rest": False})
        self.mark(step, "note", "finished by hand")
        rest = how_to_train_the_rest(self.opened.previous)
        self.note(f"Finished by hand at step {step} of {self.maker.plan.steps}. {rest}")

    def ended(self, state: str, message: str) -> None:
        """Says how the run ended: finished, interrupted or failed."""
        self._tell_unwritten()
        self.folder.record({"state": state, "message": message, "elapsed": self.events.elapsed, "notes": self.notes})
        self._tell_unwritten()
        self.events.ended(state, message)

    def _record(self, origin: Origin) -> dict[str, Any]:
        """What run.json says at the beginning."""
        events, plan = self.events, self.maker.plan
        return {
            "run": self.folder.id, "name": self.maker.name, "state": "running", "message": "",
            "workflow_id": events.workflow, "prompt_id": events.prompt_id, "node_id": events.node_id,
            "steps": plan.steps, "epochs": plan.epoch_of(plan.steps - 1) + 1,
            "started_at": self.maker.started_at, "elapsed": 0.0, "notes": [], **origin.plain(),
            "finished_by_hand": self.is_over and self.opened.was_finished_by_hand,
            "trains_rest": self.opened.trains_rest,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }  # fmt: skip

    @contextmanager
    def _kept_on_failure(self) -> Iterator[None]:
        """Writes what was learned when the run ends early, and tells the page how it ended."""
        try:
            yield
        except host.Interrupted:
            self.ended("interrupted", self._keep())
            raise
        except Diverged as error:
            self.ended("failed", f"{error} {self._keep(is_good=False)}".strip())
            raise
        except Exception as error:
            better = full_memory(error)
            self.ended("failed", f"{better or error} {self._keep()}".strip())
            if better is not None:
                raise better from error
            raise

    def _keep(self, is_good: bool = True) -> str:
        """Keeps what was learned when a run ends early. Gives where, in words.

        Args:
            is_good: whether the run may go on from here.
        """
        told = []
        if not is_good:
            state, _ = newest_state(self.folder.checkpoints)
            told.append(
                f"With previous_run {CONTINUE_CHANGED!r} a better recipe goes on from step {state.step}."
                if state is not None
                else "No checkpoint is left to go on from: the next run starts anew."
            )
        if self.steps == 0 or self.learner is None:
            return " ".join(told) if self.steps else "Nothing was learned yet."
        try:
            if is_good and self.checkpoint() is not None:
                told.append(f"Queue the workflow again, and it goes on from step {self.steps}.")
        except Exception as error:  # whatever stopped the run comes first
            told.append(f"No checkpoint of step {self.steps} could be made: {error}")
        try:
            path = self.save(PARTIAL, takes_best=True)
            if is_good:
                self._drop_partials(but=path)
            told.append(f"What was learned in {self._step_of_lora(takes_best=True)} steps is kept in {path}.")
        except Exception as error:  # likewise
            told.append(f"What was learned in {self.steps} steps could not be saved as a LoRA: {error}")
        return " ".join(told)

    def _drop_partials(self, but: Path) -> None:
        """Deletes what earlier stops of this very run kept, now that a later one has taken its place."""
        for path in delete_partials(host.lora_folder(), self.maker.name, self.folder.id, but):
            host.log("deleted %s: %s takes its place", path, but.name)

    # ---------------------------------------------------------------- what happens on the way

    def note(self, note: str) -> None:
        """What a person should know of the run, a sentence; it is said once."""
        if note not in self.notes:
            self.notes.append(note)
            host.log("%s", note)

    def mark(self, step: int, kind: str, text: str = "") -> None:
        """Something happened at a step; see `RunEvents.mark`."""
        self.events.mark(step, kind, text)
        self.folder.log({"step": step, "mark": kind, "text": text})

    def step(self, step: int, loss: float, learning_rate: float) -> None:
        """One optimizer step is done."""
        self.folder.log({"step": step, "loss": loss, "learning_rate": learning_rate})
        self.events.step(loss, learning_rate)

    def change_rate(self, step: int, factor: float) -> None:
        """From a step on the recipe's learning rate is multiplied by another factor."""
        self.rate_changes.append((step, factor))
        self.mark(step, "learning_rate", f"x {factor:g}")

    def validated(self, step: int, loss: float) -> None:
        """The held-out pictures were looked at."""
        self.validations.losses = [each for each in self.validations.losses if each[0] != step]
        if self.validations.add(step, loss) and self.config.run.keep_best:
            self.best = self._tensors()
        self.events.validated(step, loss)
        if math.isfinite(loss):
            self.folder.log({"step": step, "validation_loss": loss})

    def drop_samples(self, step: int) -> None:
        """Forgets the sample pictures of a step, those of a stop in the middle of them: they are drawn again."""
        self.samples = [each for each in self.samples if each.step != step]
        self.events.drop_samples(step)

    def sampled(self, sample: SamplePicture, number: int) -> None:
        """A sample picture is there.

        Args:
            number: of its prompt.
        """
        self.samples.append(sample)
        path = self.folder.keep_picture(f"step{sample.step:06}-{number}.png", sample.pixels)
        self._tell_unwritten()
        if path is not None:
            filename, subfolder = host.output_location(path)
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
        dataset = self.maker.dataset
        rows = [
            {
                "name": picture.name,
                "caption": dataset.caption(index),
                "loss": loss,
                "count": count,
                "thumbnail": host.thumbnail_address(picture.path),
            }  # fmt: skip
            for index, (picture, (loss, count)) in enumerate(
                zip(dataset.pictures, self.learner.picture_losses.relative(), strict=True)
            )
        ]
        return sorted(rows, key=lambda row: -(row["loss"] or 0.0))

    def _tell_unwritten(self) -> None:
        for note in self.folder.notes:
            self.note(note)

    # ---------------------------------------------------------------- checkpoints, and the way back to them

    def checkpoint(self, is_last: bool = False) -> Path | None:
        """All that the run needs to go on from here; None where it cannot be written now."""
        assert self.learner is not None
        self.events.preparing("saving")
        past = Past(
            self.events.losses, self.events.elapsed, self.rate_changes, self.controls.sample_prompts,
            self.validations.losses, self.is_over or is_last, self.looked_at, self.best, self.steps_back,
        )  # fmt: skip
        path = self.folder.checkpoint(past.put_into(*self.learner.state()), self.config.run.keep_checkpoints)
        self.checkpointed_at = time.monotonic()
        if path is not None:
            self.events.mark(self.steps, "checkpoint")
        self._tell_unwritten()
        return path

    def go_on(self, learner: Learner) -> None:
        """Lets a fresh learner go on from where the run begins.

        Raises:
            InputError: what a run before had learned does not fit this recipe.
        """
        self._load(learner, self.opened.state, self.opened.is_same)

    def way_back(self, error: Diverged) -> State | None:
        """The checkpoint to go back to after a divergence, if the run may; those that are no good are deleted."""
        forget(self.folder.checkpoints, error.spoilt)
        if self.config.run.on_divergence != "step back" or self.steps_back >= MOST_STEPS_BACK:
            return None
        # From the very step before it would take the same step again: no rate changes its gradients.
        return newest_state(self.folder.checkpoints, before=error.step - 1)[0]

    def step_back(self, learner: Learner, state: State, error: Diverged) -> None:
        """Goes back to a checkpoint of this run, with half the learning rate; nothing of the way given up stays."""
        self._load(learner, state, same_pictures=True)
        with refused(state):
            self._restore_looks(past_of(state))
        self.folder.cut_metrics(state.step)
        self.events.cut(state.step)
        self.samples = [each for each in self.samples if each.step <= state.step]
        self.steps_back += 1
        self.controls.rate_factor = 0.5 * self.rate_factor_at(state.step)
        self.change_rate(state.step, self.controls.rate_factor)
        self.note(f"{error} Went back to step {state.step} with the learning rate x {self.controls.rate_factor:g}.")
        self.checkpoint()  # in place of those of the way that was given up

    def _load(self, learner: Learner, state: State | None, same_pictures: bool) -> None:
        self.learner = None  # half loaded it would be kept in place of the checkpoint
        if state is not None:
            with refused(state):
                learner.load(state.tensors, state.facts, same_pictures)
        self.learner = learner

    def _restore(self) -> None:
        """Takes over what a stopped run had told and drawn."""
        state = self.opened.state
        if state is None or not self.opened.is_same:
            return
        try:
            with refused(state):
                past = past_of(state)
        except InputError as error:
            self.events.ended("failed", str(error))
            raise
        self.events.restore(self.folder.cut_metrics(state.step), past.losses, past.elapsed)
        self.rate_changes, self.steps_back = past.rate_changes, past.steps_back
        self.controls.rate_factor = self.rate_factor_at(state.step)
        self.controls.sample_prompts = past.sample_prompts
        self.is_over = past.is_over and not self.opened.trains_rest
        self._restore_looks(past)
        for sample in self.events.samples:
            pixels = self.folder.picture(str(sample.get("filename")))
            if pixels is not None:
                self.samples.append(SamplePicture(int(sample["step"]), str(sample["prompt"]), pixels))

    def _restore_looks(self, past: Past) -> None:
        """Takes over what was seen of the LoRA up to a step."""
        self.validations.losses, self.best, self.looked_at = past.validations, past.best, past.looked_at

    # ---------------------------------------------------------------- the LoRA

    def lora(self, takes_best: bool = False) -> LoRAModel:
        """The LoRA as it is now.

        Args:
            takes_best: as it was at its best, where that is to be kept.
        """
        tensors = (takes_best and self.best) or self._tensors()
        return self.maker.lora(tensors, self._step_of_lora(takes_best), self.folder.id)

    def save(self, suffix: str = "", takes_best: bool = False) -> Path:
        """Writes the LoRA to a file on the way, and gives where it lies; see `lora` and `Maker.save`."""
        path = self.maker.save(self.lora(takes_best), self._step_of_lora(takes_best), suffix)
        self.events.resume_clock()
        return path

    def _tensors(self) -> dict[str, torch.Tensor]:
        assert self.learner is not None
        return self.maker.tensors(self.learner)

    def _step_of_lora(self, takes_best: bool) -> int:
        best = self.validations.best if takes_best and self.best else None
        return best[0] if best else self.steps


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
