"""The progress of a run: one record, which checkpoints, resume, the page and the report read."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, Strict, ValidationError
from typing_extensions import TypedDict

from ..model.state import Damaged
from .controls import HIGHEST_FACTOR

LOSSES, BEST = "losses", "best:"
"""Names of tensors in a checkpoint: the losses, and the prefix of the best LoRA's."""
SMOOTHING = 0.95
"""decay of the exponential average of the losses"""
AVERAGED = 1000
"""losses that count in the average: those before have a weight of less than 1e-22"""
LAST_STEP = 10**9

Step = Annotated[int, Field(ge=0, le=LAST_STEP)]


class Mark(TypedDict):
    """An event in the course of a run: checkpoint, sample, resumed, learning_rate or note."""

    step: Step
    kind: str
    text: str


class SampleFile(TypedDict):
    """A sample picture in a file of ComfyUI's output folder."""

    step: Step
    prompt: str
    prompt_index: Annotated[int, Field(ge=0)]
    filename: str
    subfolder: str


@dataclass(frozen=True)
class SamplePicture:
    """A picture drawn during training."""

    step: int
    prompt: str
    pixels: torch.Tensor
    """(H, W, 3) in [0, 1]"""


class _Facts(BaseModel, strict=True):
    """The part of a checkpoint's state.json that is a run's progress."""

    elapsed: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    rate_changes: list[Annotated[tuple[Step, Annotated[float, Field(gt=0, le=HIGHEST_FACTOR)]], Strict(False)]]
    sample_prompts: list[str]
    validations: list[Annotated[tuple[Step, Annotated[float, Field(ge=-math.inf)]], Strict(False)]]
    is_over: bool
    looked_at: Step
    steps_back: Annotated[int, Field(ge=0)]


@dataclass
class Progress:
    """How far a run is, and how it went. The page reads it from another thread."""

    losses: list[float] = field(default_factory=list)
    """of every step"""
    learning_rates: list[float] = field(default_factory=list)
    """of every step"""
    validations: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss on the held-out pictures); inf where it is not finite"""
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    """LoRA of the best validation, where the recipe says keep_best"""
    rate_changes: list[tuple[int, float]] = field(default_factory=list)
    """(first step, factor on the recipe's learning rate)"""
    sample_prompts: tuple[str, ...] = ()
    marks: list[Mark] = field(default_factory=list)
    samples: list[SampleFile] = field(default_factory=list)
    pictures: list[SamplePicture] = field(default_factory=list)
    """the samples' pixels"""
    completed: int = 0
    """last step whose validation, saving and sampling are complete"""
    is_over: bool = False
    """whether training ended, at its last step or before"""
    steps_back: int = 0
    """how often the run diverged and went back to an earlier checkpoint"""
    largest_loss: float = field(default=0.0, init=False)
    _average: float = field(default=0.0, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)
    _ended: float | None = field(default=None, init=False)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.losses)

    @property
    def elapsed(self) -> float:
        """Seconds, including those before a stop, until `stop_clock`."""
        return (self._ended or time.monotonic()) - self._started

    @property
    def smoothed(self) -> float:
        """Exponential average of the losses, with Adam's bias correction; 0 before the first."""
        return self._average / (1.0 - SMOOTHING**self.step) if self.losses else 0.0

    @property
    def best_validation(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss, the first of equal ones."""
        return min(self.validations, key=lambda each: each[1], default=None)

    def is_patience_exhausted(self, patience: int) -> bool:
        """Whether the last `patience` validations were no better than the best; never for 0."""
        best = self.best_validation
        return bool(patience and best and sum(step > best[0] for step, _ in self.validations) >= patience)

    def rate_factor_at(self, step: int) -> float:
        """The factor on the recipe's learning rate at a step."""
        return next((factor for since, factor in reversed(self.rate_changes) if since <= step), 1.0)

    # ---------------------------------------------------------------- what happens

    def add_step(self, loss: float, learning_rate: float) -> None:
        """One optimizer step is done."""
        self.largest_loss = max(self.largest_loss, loss)
        self._average = SMOOTHING * self._average + (1.0 - SMOOTHING) * loss
        self.learning_rates.append(learning_rate)
        self.losses.append(loss)  # last: its length is the number of steps

    def load_steps(self, losses: list[float], learning_rates: list[float]) -> None:
        """Takes all steps of a run at once, in place of `add_step` for each. The average needs the newest alone."""
        self.losses, self.learning_rates = losses, learning_rates
        self.largest_loss, self._average = max(losses, default=0.0), 0.0
        for loss in losses[-AVERAGED:]:
            self._average = SMOOTHING * self._average + (1.0 - SMOOTHING) * loss

    def add_validation(self, step: int, loss: float) -> bool:
        """Adds a validation, in place of an earlier one of the same step. True: it is the best so far."""
        others = [each for each in self.validations if each[0] != step]
        is_best = math.isfinite(loss) and all(loss < earlier for _, earlier in others)
        self.validations = [*others, (step, loss if math.isfinite(loss) else math.inf)]
        return is_best

    def drop_samples(self, step: int) -> None:
        """Forgets the sample pictures of a step, which are drawn again."""
        self.samples = [each for each in self.samples if each["step"] != step]
        self.pictures = [each for each in self.pictures if each.step != step]

    def stop_clock(self) -> None:
        """The run has ended."""
        self._ended = time.monotonic()

    def cut(self, state: Mapping[str, Any]) -> None:
        """Goes back to an earlier state of this run, as `state_dict` returned it, and forgets what came after.

        Elapsed time, prompts and the count of steps back stay.

        Raises:
            Damaged: the state is not one of a run.
        """
        earlier = Progress()
        earlier.load_state_dict(state)
        step, rates = earlier.step, self.learning_rates
        self.largest_loss, self._average = earlier.largest_loss, earlier._average
        self.losses, self.learning_rates = earlier.losses, rates[:step]
        self.validations, self.best, self.completed = earlier.validations, earlier.best, earlier.completed
        self.rate_changes = [each for each in self.rate_changes if each[0] <= step]
        self.marks = [each for each in self.marks if each["step"] <= step]
        self.samples = [each for each in self.samples if each["step"] <= step]
        self.pictures = [each for each in self.pictures if each.step <= step]

    def without_tensors(self) -> "Progress":
        """A copy for the page of a run that has ended: without pictures and the best LoRA."""
        light = copy.copy(self)
        light.best, light.pictures = {}, []
        return light

    # ---------------------------------------------------------------- to a checkpoint, and from it

    def state_dict(self) -> dict[str, Any]:
        """The step, tensors and plain JSON for a checkpoint.

        Learning rates, marks and samples are not among them: metrics.jsonl holds them.
        """
        return {
            "step": self.step,
            LOSSES: torch.tensor(self.losses, dtype=torch.float64),
            **{f"{BEST}{name}": tensor for name, tensor in self.best.items()},
            "elapsed": self.elapsed,
            "rate_changes": list(self.rate_changes),
            "sample_prompts": list(self.sample_prompts),
            "validations": list(self.validations),
            "is_over": self.is_over,
            "looked_at": self.completed,
            "steps_back": self.steps_back,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; learning rates are 0 until `load_metrics`.

        Raises:
            Damaged: an entry is missing, or has another type or range.
        """
        try:
            facts = _Facts.model_validate(dict(state))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
            raise Damaged(f"the checkpoint does not say how the run went ({wrong})") from error
        losses = state.get(LOSSES)
        if not isinstance(losses, torch.Tensor) or losses.shape != (state["step"],):
            raise Damaged(f"the checkpoint holds no {LOSSES} of a run of {state['step']} steps")
        self.losses, self.learning_rates, self.largest_loss, self._average = [], [], 0.0, 0.0
        for loss in losses.double().tolist():
            self.add_step(loss, 0.0)
        self.best = {
            key.removeprefix(BEST): each
            for key, each in state.items()
            if key.startswith(BEST) and isinstance(each, torch.Tensor)
        }
        self._started = time.monotonic() - facts.elapsed
        self.rate_changes, self.validations = facts.rate_changes, facts.validations
        self.sample_prompts = tuple(facts.sample_prompts)
        self.is_over, self.completed, self.steps_back = facts.is_over, facts.looked_at, facts.steps_back

    def load_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds to the steps of a checkpoint what metrics.jsonl holds: learning rates, marks, samples."""
        rates = {line["step"]: line.get("learning_rate", 0.0) for line in lines if "loss" in line}
        self.learning_rates = [rates.get(step, 0.0) for step in range(1, self.step + 1)]
        self.load_events(lines)

    def load_events(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Takes the marks and samples from lines of metrics.jsonl."""
        self.marks = [
            Mark(step=line["step"], kind=line["mark"], text=line.get("text", "")) for line in lines if "mark" in line
        ]
        self.samples = [line["sample"] for line in lines if "sample" in line]
