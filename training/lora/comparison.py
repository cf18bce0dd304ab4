"""A LoRA compared with itself: at several strengths, for several prompts, and after fewer steps of its run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import host
from ..basics.errors import InputError
from ..data.sheets import strength_grid
from .export import AS_TRAINED, in_precision
from .files import for_host, read_lora_file
from .peft_dora import with_hosts_dora
from .run_files import earlier_files, step_of

MOST_STEPS = 8
"""Most steps of a run in one comparison; of more, evenly spaced ones are taken."""
MOST_PICTURES, MOST_PIXELS = 400, 2**28
"""Limits of one comparison; that many pixels are a sheet of 3 GB in memory."""
SUBJECT = "Apply LoRA Preview"


@dataclass(frozen=True)
class Drawing:
    """Settings with which each picture is drawn."""

    seed: int
    """Seed for the first prompt; each further prompt's is one higher."""
    width: int
    height: int
    steps: int
    guidance: float
    negative_prompt: str
    sampler: str
    scheduler: str


class Sources(NamedTuple):
    """The node's inputs with which a comparison is drawn."""

    model: Any
    clip: Any
    vae: Any
    lora: Mapping[str, torch.Tensor]


class Comparison(NamedTuple):
    """The pictures of a comparison: every step with every prompt at every strength."""

    steps: tuple[int, ...]
    """As `Versions.at` takes them."""
    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    drawing: Drawing


@dataclass
class Row:
    """The pictures of one prompt with the LoRA of one step, one per strength."""

    number: int
    """Index of the prompt."""
    prompt: str
    step: int
    """Step of the LoRA; 0 = the LoRA itself."""
    label: str
    pictures: list[torch.Tensor]
    """(H, W, 3) in [0, 1], one per strength."""


class Versions:
    """A LoRA and the files of earlier steps of its run.

    Args:
        lora: with keys of any format.
        files: candidates for those files, by the host's names.
    """

    def __init__(self, lora: Mapping[str, torch.Tensor], files: Mapping[str, Path]):
        self.lora = lora
        self.files = earlier_files(lora, files)
        self.last = step_of(getattr(lora, "metadata", {}))
        """Steps that the LoRA itself was trained for; None = unknown."""

    def has(self, step: int) -> bool:
        """Whether there is a LoRA of this step; 0 = the LoRA itself."""
        return step in (0, self.last, *self.files)

    def at(self, step: int) -> Mapping[str, torch.Tensor]:
        """The LoRA after a number of steps for which `has` is true.

        Raises:
            InputError: its file cannot be read.
        """
        return self.lora if step in (0, self.last) else read_lora_file(self.files[step])

    def chosen(self) -> list[int]:
        """The steps to compare, and 0, the LoRA itself, last."""
        steps = list(self.files)
        count = min(len(steps), MOST_STEPS - 1)
        return [*(steps[round((n + 0.5) * len(steps) / count - 0.5)] for n in range(count)), 0]

    def label(self, step: int) -> str:
        """Name of a step in the comparison."""
        if step:
            return f"step {step}"
        return "the LoRA" if self.last is None else f"step {self.last}"


def check_size(steps: Sequence[int], prompts: Sequence[str], strengths: Sequence[float], drawing: Drawing) -> None:
    """Refuses a comparison that would not fit into memory.

    Raises:
        InputError: its pictures are too many or too large.
    """
    count = len(steps) * len(prompts) * len(strengths)
    if count > MOST_PICTURES or count * drawing.width * drawing.height > MOST_PIXELS:
        problem = (
            f"{len(prompts)} prompts x {len(strengths)} strengths x {len(steps)} steps of the run are {count} pictures "
            f"of {drawing.width} x {drawing.height}; at most {MOST_PICTURES}, and {MOST_PIXELS // 10**6} million "
            "pixels in all, can be compared at once. Write fewer prompts or strengths, or smaller pictures."
        )
        raise InputError(SUBJECT, [problem])


def draw_rows(
    sources: Sources, versions: Versions, comparison: Comparison, progress: Callable[[int], None]
) -> list[Row]:
    """Draws each prompt with the LoRA of each step at each strength; one row per prompt and step.

    Args:
        versions: of `sources.lora`.
        progress: called with the number of pictures done.
    """
    model, clip, vae, _ = sources
    steps, prompts, strengths, drawing = comparison
    names = host.changeable_names(model, clip)
    rows = {
        (number, step): Row(number, prompt, step, versions.label(step), [])
        for number, prompt in enumerate(prompts)
        for step in steps
    }
    done = 0
    for step in steps:
        lora = with_hosts_dora(in_precision(versions.at(step), AS_TRAINED), names, model, clip)
        lora = for_host(lora, names)
        for column, strength in enumerate(strengths):
            with_lora = host.with_lora(model, clip, lora, strength) if strength else (model, clip)
            for number, prompt in enumerate(prompts):
                first = rows[number, steps[0]].pictures
                if not strength and len(first) > column:  # without a LoRA the picture is the same for every step
                    pixels = first[column]
                else:
                    settings = {**vars(drawing), "seed": drawing.seed + number}
                    pixels = host.draw(*with_lora, vae, prompt, **settings)
                rows[number, step].pictures.append(pixels)
                done += 1
                progress(done)
    return list(rows.values())


def comparison_sheet(rows: Sequence[Row], strengths: Sequence[float]) -> torch.Tensor:
    """A labelled grid of the pictures: (1, H, W, 3) in [0, 1]."""
    one_step = len({row.step for row in rows}) == 1
    titled = [(row.prompt if one_step else f"{row.label} · {row.prompt}", row.pictures) for row in rows]
    return strength_grid(titled, [f"{value:g}" for value in strengths])
