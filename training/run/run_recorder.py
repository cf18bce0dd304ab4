"""The recorder of a run: its progress goes to its folder and to the page; a run that fails leaves what it learned."""

import math
import os
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import host
from ..basics.errors import InputError
from ..basics.memory import is_device_full, is_ram_full
from ..learning.loop import Diverged
from ..lora.run_files import PARTIAL, delete_partials
from ..model.learner import Learner
from .checkpoints import State, delete_from, newest_state
from .controls import Controls
from .live import LiveRun
from .lora_writer import LoRAWriter
from .origin import Origin
from .prepare import Prepared
from .progress import Mark, Progress, SampleFile, SamplePicture
from .recorder import Recorder
from .resume import (
    CONTINUE_CHANGED,
    OpenedRun,
    how_to_train_the_rest,
    load_learner,
    load_progress,
    open_run,
    refused,
)

OUT_OF_MEMORY = (
    "The GPU's memory is full. In LoRA Config turn gradient_checkpointing on, lower batch_size or choose "
    "fewer targets; or lower resolution in Load Dataset."
)
OUT_OF_RAM = (
    "The computer's memory (RAM) is full. Close other programs; or in LoRA Config lower batch_size or rank, or choose "
    "fewer targets; or lower resolution in Load Dataset."
)
MOST_STEPS_BACK = 3
"""how often a run that diverges goes back to its last good checkpoint"""


class RunRecorder:
    """Writes a run's progress to its folder, shows it to the page, and saves what was learned if the run fails.

    Args:
        opened: the run's folder, and the state in which the run begins.
        workflow: the id of the workflow.
    """

    def __init__(self, opened: OpenedRun, prepared: Prepared, workflow: str):
        self.opened, self.prepared = opened, prepared
        self.folder, self.notes, self.config = opened.folder, prepared.notes, prepared.config
        self.progress = Progress(sample_prompts=self.config.run.sample_prompts)
        self.controls = Controls(self.progress.sample_prompts)
        self.writer = LoRAWriter(prepared, self.folder.id)
        self.learner: Learner | None = None
        plan = prepared.data.plan
        self.live = LiveRun(
            self.progress,
            self.controls,
            steps=plan.steps,
            name=prepared.name,
            run=self.folder.id,
            workflow=workflow,
            epoch_of=plan.epoch_of,
            pictures=self.picture_rows,
            notes=self.notes.sentences,
        )
        self._checkpointed_at = time.monotonic()

    @property
    def is_checkpoint_due(self) -> bool:
        return time.monotonic() - self._checkpointed_at >= 60.0 * self.config.run.checkpoint_minutes

    # ---------------------------------------------------------------- beginning and end

    @contextmanager
    def recording(self, origin: Origin) -> Iterator[None]:
        """Resumes the folder's run if it goes on. If the body raises, saves what was learned.

        Raises:
            InputError: the checkpoint of the run that goes on cannot be used.
        """
        try:
            self.notes.add(*self.opened.notes)
            self._resume()
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            self.folder.write_owner({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            self.folder.record(self._record(origin))
            with self._saved_on_failure():
                yield
        finally:
            with self._telling_the_page():
                self.live.release()
            self.learner = None

    def finish(self) -> None:
        self.checkpoint()
        self._end("finished", "")

    def finished_by_hand(self) -> None:
        step = self.progress.step
        self.folder.record({"finished_by_hand": True, "trains_rest": False})
        self.mark(step, "note", "finished by hand")
        rest = how_to_train_the_rest(self.opened.previous)
        self.notes.add(f"Finished by hand at step {step} of {self.prepared.data.plan.steps}. {rest}")

    def load(self, learner: Learner) -> None:
        if self.opened.state is not None:
            load_learner(learner, self.opened.state, same_pictures=self.opened.is_same)
            self.opened = replace(self.opened, state=None)  # it takes memory
        self.learner = learner

    def _resume(self) -> None:
        try:
            load_progress(self.progress, self.opened)
        except InputError as error:
            self.progress.stop_clock()
            with self._telling_the_page():
                self.live.ended("failed", str(error))
            raise
        progress, controls = self.progress, self.controls
        if progress.losses:
            progress.marks.append(Mark(step=progress.step, kind="resumed", text=""))
        controls.rate_factor = progress.rate_factor_at(progress.step)
        controls.sample_prompts = progress.sample_prompts

    def _record(self, origin: Origin) -> dict[str, Any]:
        """The content of run.json when the run begins."""
        live, plan = self.live, self.prepared.data.plan
        return {
            "run": self.folder.id,
            "name": self.prepared.name,
            "state": "running",
            "message": "",
            "workflow_id": live.workflow,
            "prompt_id": live.prompt_id,
            "node_id": live.node_id,
            "steps": plan.steps,
            "epochs": plan.epoch_of(plan.steps - 1) + 1,
            "epoch": 0,
            "started_at": self.prepared.started_at,
            "elapsed": 0.0,
            "notes": [],
            **origin.plain(),
            "finished_by_hand": self.progress.is_over and self.opened.was_finished_by_hand,
            "trains_rest": self.opened.trains_rest,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }

    def _end(self, state: str, message: str) -> None:
        """state: finished, interrupted or failed."""
        self.progress.stop_clock()
        self._note_unwritten()
        with self.notes.telling("The run's record"):
            self.folder.record(
                {
                    "state": state,
                    "message": message,
                    "elapsed": self.progress.elapsed,
                    "epoch": self.prepared.data.plan.epoch_of(max(0, self.progress.step - 1)) + 1,
                    "notes": self.notes.sentences,
                }
            )
        self._note_unwritten()
        with self._telling_the_page():
            self.live.ended(state, message)

    def _telling_the_page(self) -> AbstractContextManager[None]:
        return self.notes.telling("What the page shows of the run")

    def _log(self, step: int, **figures: Any) -> None:
        """Appends a line to the run's log of steps, without figures that are no numbers."""
        known = {key: each for key, each in figures.items() if not isinstance(each, float) or math.isfinite(each)}
        with self.notes.telling("The run's log of steps"):
            self.folder.log({"step": step, **known})

    # ---------------------------------------------------------------- during the run

    def show(self, phase: str, done: int = 0, total: int = 0, message: str = "") -> None:
        with self._telling_the_page():
            if phase == "training":
                self.live.training()
            elif phase == "paused":
                self.live.paused()
            else:
                self.live.preparing(phase, done, total, message)

    def mark(self, step: int, kind: str, text: str = "") -> None:
        self.progress.marks.append(Mark(step=step, kind=kind, text=text))
        self._log(step, mark=kind, text=text)

    def stepped(self) -> None:
        progress = self.progress
        self._log(progress.step, loss=progress.losses[-1], learning_rate=progress.learning_rates[-1])
        with self._telling_the_page():
            self.live.stepped()

    def validated(self) -> None:
        step, loss = self.progress.validations[-1]
        if math.isfinite(loss):
            self._log(step, validation_loss=loss)

    def sampled(self, picture: SamplePicture, number: int) -> None:
        path = None
        with self.notes.telling("A sample picture"):
            path = self.folder.write_picture(f"step{picture.step:06}-{number}.png", picture.pixels)
        self._note_unwritten()
        if path is not None:
            with self._telling_the_page():
                filename, subfolder = host.output_location(path)
                sample = SampleFile(
                    step=picture.step,
                    prompt=picture.prompt,
                    prompt_index=number,
                    filename=filename,
                    subfolder=subfolder,
                )
                self._log(picture.step, sample=sample)
                self.progress.samples.append(sample)
                self.live.send()

    def save(self) -> None:
        assert self.learner is not None
        self.writer.write(self.writer.latest(self.learner, self.progress))
        self.live.restart_step_clock()

    def checkpoint(self) -> Path | None:
        assert self.learner is not None
        self.show("saving")
        self.progress.sample_prompts = self.controls.sample_prompts
        tensors, facts = self.learner.state()
        state = State.of({**tensors, **facts, **self.progress.state_dict()})
        path = self.folder.checkpoint(state, self.config.run.keep_checkpoints)
        self._checkpointed_at = time.monotonic()
        if path is not None:
            self.progress.marks.append(Mark(step=state.step, kind="checkpoint", text=""))
        self._note_unwritten()
        return path

    def step_back(self, learner: Learner, error: Diverged) -> bool:
        """Goes back to a checkpoint of this run and halves the learning rate; deletes everything after its step."""
        folder, progress, controls = self.folder, self.progress, self.controls
        try:
            left = delete_from(folder.checkpoints, error.spoilt)
        except OSError:
            left = [folder.checkpoints]
        for path in left:
            self.notes.add(
                f"{path} may hold a diverged state and cannot be deleted: close the program that holds it, and delete "
                f"what is of step {error.spoilt} or later."
            )
        if self.config.run.on_divergence != "step back" or progress.steps_back >= MOST_STEPS_BACK:
            return False
        # From the step just before, the same step would follow: the learning rate does not change its gradients.
        try:
            state, _ = newest_state(folder.checkpoints, before=min(error.step - 1, error.spoilt))
        except OSError as problem:
            self.notes.add(f"There is no going back: a checkpoint cannot be read ({problem}).")
            return False
        if state is None:
            return False
        self.learner = None  # half loaded, it must not be saved in place of the checkpoint
        load_learner(learner, state, same_pictures=True)
        self.learner = learner
        with refused(state):
            progress.cut(state.state_dict())
        folder.cut_metrics(state.step)
        self.live.send_all_again()
        progress.steps_back += 1
        controls.rate_factor = 0.5 * progress.rate_factor_at(state.step)
        progress.rate_changes.append((state.step, controls.rate_factor))
        self.mark(state.step, "learning_rate", f"x {controls.rate_factor:g}")
        self.notes.add(f"{error} Went back to step {state.step} with the learning rate x {controls.rate_factor:g}.")
        self.checkpoint()  # replaces those of later steps
        return True

    def picture_rows(self) -> list[dict[str, Any]]:
        """For each picture its mean loss, relative to the average at the same noise levels; the highest first."""
        if self.learner is None:
            return []
        dataset = self.prepared.data.training
        rows = [
            {
                "name": picture.name,
                "caption": dataset.caption(index),
                "loss": loss,
                "count": count,
                "thumbnail": host.thumbnail_address(picture.path),
            }
            for index, (picture, (loss, count)) in enumerate(
                zip(dataset.pictures, self.learner.picture_losses.relative(), strict=True)
            )
        ]
        return sorted(rows, key=lambda row: -(row["loss"] or 0.0))

    def _note_unwritten(self) -> None:
        self.notes.add(*self.folder.notes)

    # ---------------------------------------------------------------- failure

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """If the run fails, saves what was learned, and records how the run ended."""
        try:
            yield
        except host.Interrupted:
            self._end("interrupted", self._save_learned())
            raise
        except Diverged as error:
            self._end("failed", f"{error} {self._save_diverged()}".strip())
            raise
        except Exception as error:
            better = full_memory(error)
            self._end("failed", f"{better or error} {self._save_learned()}".strip())
            if better is not None:
                raise better from error
            raise

    def _save_learned(self) -> str:
        """Saves a checkpoint and the LoRA. Returns sentences about both."""
        step, messages = self.progress.step, []
        if step == 0:
            return "Nothing was learned yet."
        if self.learner is None:
            return ""
        try:
            if self.checkpoint() is not None:
                messages.append(f"Queue the workflow again, and it goes on from step {step}.")
        except Exception as error:  # the error that ended the run matters more
            messages.append(f"No checkpoint of step {step} could be made: {error}")
        return " ".join([*messages, self._save_partial(self.learner, replaces_earlier=True)])

    def _save_diverged(self) -> str:
        """Saves the LoRA alone: the run cannot go on from a diverged state. Returns sentences about it."""
        try:
            state, _ = newest_state(self.folder.checkpoints)
        except OSError as error:
            return f"Its last checkpoint cannot be read ({error})."
        if state is None:
            message = "No checkpoint is left to go on from: the next run starts anew."
        else:
            message = f"With previous_run {CONTINUE_CHANGED!r} a better recipe goes on from step {state.step}."
        if self.progress.step == 0:
            return "Nothing was learned yet."
        return message if self.learner is None else f"{message} {self._save_partial(self.learner)}"

    def _save_partial(self, learner: Learner, replaces_earlier: bool = False) -> str:
        """Saves the LoRA of a run that ended early. Returns a sentence about it.

        Args:
            replaces_earlier: whether files that earlier stops of this run have left are deleted.
        """
        try:
            learned = self.writer.best(learner, self.progress)
            path = self.writer.write(learned, PARTIAL)
            if replaces_earlier:
                for earlier in delete_partials(host.lora_folder(), self.prepared.name, self.folder.id, path):
                    host.log("deleted %s: %s takes its place", earlier, path.name)
            return f"What was learned in {learned.step} steps is kept in {path}."
        except Exception as error:  # the error that ended the run matters more
            return f"What was learned in {self.progress.step} steps could not be saved as a LoRA: {error}"


def full_memory(error: Exception) -> Exception | None:
    """An error with advice in place of one that says that memory is full; None for other errors."""
    if is_device_full(error):
        return torch.OutOfMemoryError(OUT_OF_MEMORY)
    return MemoryError(OUT_OF_RAM) if is_ram_full(error) else None


@contextmanager
def recorded(
    prepared: Prepared,
    origin: Origin,
    previous: str,
    workflow: str,
    recorder: type[RunRecorder] = RunRecorder,
) -> Iterator[Recorder]:
    """Records a run in its folder and on the page.

    Args:
        previous: what to do about an earlier run of this name; one of `resume.PREVIOUS`.
        workflow: the id of the workflow.

    Raises:
        InputError: the folder or the checkpoint cannot be used.
    """
    opened = open_run(host.runs_root(), prepared.name, origin, previous)
    with closing(opened.folder):
        made = recorder(opened, prepared, workflow)
        del opened  # its state goes when it is loaded
        with made.recording(origin):
            yield made
