"""Recorders: a run tells its recorder what happens. `RunRecorder` is in `run_recorder`; the one here keeps nothing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from ..learning.loop import Diverged
from ..model.learner import Learner
from .controls import Controls
from .lora_writer import LoRAWriter
from .origin import Origin
from .prepare import Prepared
from .progress import Progress, SamplePicture


class Recorder(Protocol):
    """Is told what happens in a run. It adds marks, samples and files to the progress; all else the run has added.

    `run_recorder.RunRecorder` writes it to disk and shows it to the page; `NullRecorder` does neither.
    """

    progress: Progress
    controls: Controls
    writer: LoRAWriter
    learner: Learner | None
    """saved if the run fails; None while its parameters are unsound: half loaded, or moved by an exploded step"""

    @property
    def is_checkpoint_due(self) -> bool:
        """Whether the last checkpoint is as old as the recipe allows."""
        ...

    def load(self, learner: Learner) -> None:
        """Loads the state in which the run begins into a new learner, and sets `learner`."""
        ...

    def show(self, phase: str, done: int = 0, total: int = 0, message: str = "") -> None:
        """The phase: loading, encoding, validating, sampling, saving, training or paused."""
        ...

    def mark(self, step: int, kind: str, text: str = "") -> None:
        """An event; for the kinds see `Mark`."""
        ...

    def stepped(self) -> None:
        """An optimizer step is done."""
        ...

    def validated(self) -> None:
        """The loss on the held-out pictures was measured."""
        ...

    def sampled(self, picture: SamplePicture, number: int) -> None:
        """A sample picture was drawn.

        Args:
            number: of its prompt.
        """
        ...

    def save(self) -> None:
        """Writes the LoRA of the last step to a file."""
        ...

    def checkpoint(self) -> Path | None:
        """Writes a checkpoint. None: it could not be written."""
        ...

    def step_back(self, learner: Learner, error: Diverged) -> bool:
        """Goes back to a checkpoint before a divergence. False: there is none, or the recipe does not allow it."""
        ...

    def finished_by_hand(self) -> None:
        """The user has ended the run on the page; its remaining steps can be trained later."""
        ...

    def finish(self) -> None:
        """The run has ended as planned."""
        ...


Record = Callable[[Prepared, Origin, str, str], AbstractContextManager[Recorder]]
"""(run, its origin, one of PREVIOUS, workflow id) -> its recorder, for as long as the run lasts"""


class NullRecorder:
    """Keeps the progress in memory, writes nothing and shows nothing."""

    is_checkpoint_due = False

    def __init__(self, prepared: Prepared):
        self.progress = Progress(sample_prompts=prepared.config.run.sample_prompts)
        self.controls = Controls(self.progress.sample_prompts)
        self.writer = LoRAWriter(prepared, run="")
        self.learner: Learner | None = None

    def load(self, learner: Learner) -> None:
        self.learner = learner

    def show(self, phase: str, done: int = 0, total: int = 0, message: str = "") -> None:
        pass

    def mark(self, step: int, kind: str, text: str = "") -> None:
        pass

    def stepped(self) -> None:
        pass

    def validated(self) -> None:
        pass

    def sampled(self, picture: SamplePicture, number: int) -> None:
        pass

    def save(self) -> None:
        pass

    def checkpoint(self) -> None:
        pass

    def step_back(self, learner: Learner, error: Diverged) -> bool:
        return False

    def finished_by_hand(self) -> None:
        pass

    def finish(self) -> None:
        self.progress.stop_clock()


@contextmanager
def unrecorded(prepared: Prepared, origin: Origin, previous: str, workflow: str) -> Iterator[Recorder]:
    """Trains from step 0 with nothing on disk and nothing on the page; to be used in place of `recorded`."""
    yield NullRecorder(prepared)
