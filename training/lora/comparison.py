"""A LoRA side by side with itself: at several strengths, for several prompts, and as it was on the way."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import host
from ..basics.errors import InputError
from ..data.sheets import strength_grid
from .export import AS_TRAINED, in_precision
from .files import earlier_files, for_host, read_lora_file, step_of

MOST_STEPS = 8
"""of a run in one comparison; more are thinned out evenly"""
MOST_PICTURES, MOST_PIXELS = 400, 2**28
"""of one comparison; as many pixels are a sheet of 3 GB in memory"""
SUBJECT = "Apply LoRA Preview"
MOST_SHOWN = 64
"""nodes of workflows whose last pictures a page can have again"""

_shown: dict[tuple[str, str], dict[str, Any]] = {}
"""(workflow, node) -> what its page got"""


@dataclass(frozen=True)
class Drawing:
    """How each picture is drawn."""

    seed: int
    """of the first prompt; the next prompts have the next ones"""
    width: int
    height: int
    steps: int
    guidance: float
    negative_prompt: str
    sampler: str
    scheduler: str


@dataclass
class Row:
    """A prompt with the LoRA of one step, at each strength."""

    number: int
    """of the prompt, from 0"""
    prompt: str
    step: int
    """0 = the LoRA as it came in"""
    label: str
    pictures: list[torch.Tensor]
    """(H, W, 3) in [0, 1], one a strength"""


class Versions:
    """A LoRA, and what its run saved on the way to it.

    Args:
        lora: of any form.
        files: where its run may have written, by the host's names.
    """

    def __init__(self, lora: Mapping[str, torch.Tensor], files: Mapping[str, Path]):
        self.lora = lora
        self.files = earlier_files(lora, files)
        self.last = step_of(getattr(lora, "metadata", {}))
        """how many steps the LoRA itself was trained for; None where it is not known"""

    def has(self, step: int) -> bool:
        """Whether `at` knows a step."""
        return step in (0, self.last, *self.files)

    def at(self, step: int) -> Mapping[str, torch.Tensor]:
        """The LoRA after so many steps, one that `has` knows; 0 = as it came in.

        Raises:
            InputError: its file cannot be read.
        """
        return self.lora if step in (0, self.last) else read_lora_file(self.files[step])

    def chosen(self) -> list[int]:
        """The steps to compare, the LoRA as it came in last."""
        steps = list(self.files)
        count = min(len(steps), MOST_STEPS - 1)
        return [*(steps[round((n + 0.5) * len(steps) / count - 0.5)] for n in range(count)), 0]

    def label(self, step: int) -> str:
        """What a step is called in the comparison."""
        if step:
            return f"step {step}"
        return "the LoRA" if self.last is None else f"step {self.last}"


def check_size(steps: Sequence[int], prompts: Sequence[str], strengths: Sequence[float], drawing: Drawing) -> None:
    """Refuses, before anything is drawn, what would not fit into memory.

    Raises:
        InputError: too many pictures, or too large ones.
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
    model: Any,
    clip: Any,
    vae: Any,
    versions: Versions,
    steps: Sequence[int],
    prompts: Sequence[str],
    strengths: Sequence[float],
    drawing: Drawing,
    progress: Callable[[int], None],
) -> list[Row]:
    """Draws each prompt with the LoRA of each step at each strength: a row a prompt and step.

    Args:
        steps: as `Versions.at` takes them.
        progress: is told the pictures done so far.
    """
    names = host.layer_names(model, clip)
    rows = {
        (number, step): Row(number, prompt, step, versions.label(step), [])
        for number, prompt in enumerate(prompts)
        for step in steps
    }
    done = 0
    for step in steps:
        lora = for_host(in_precision(versions.at(step), AS_TRAINED), names)
        for column, strength in enumerate(strengths):
            with_lora = host.with_lora(model, clip, lora, strength) if strength else (model, clip)
            for number, prompt in enumerate(prompts):
                first = rows[number, steps[0]].pictures
                if not strength and len(first) > column:  # the model without a LoRA is the same at every step
                    pixels = first[column]
                else:
                    pixels = host.draw(
                        *with_lora, vae, prompt, drawing.negative_prompt, seed=drawing.seed + number,
                        width=drawing.width, height=drawing.height, steps=drawing.steps, guidance=drawing.guidance,
                        sampler=drawing.sampler, scheduler=drawing.scheduler,
                    )  # fmt: skip
                rows[number, step].pictures.append(pixels)
                done += 1
                progress(done)
    return list(rows.values())


def comparison_sheet(rows: Sequence[Row], strengths: Sequence[float]) -> torch.Tensor:
    """The labelled grid: (1, H, W, 3) in [0, 1]."""
    one_step = len({row.step for row in rows}) == 1
    titled = [(row.prompt if one_step else f"{row.label} · {row.prompt}", row.pictures) for row in rows]
    return strength_grid(titled, [f"{value:g}" for value in strengths])


def remember_shown(workflow: str, node: str, shown: dict[str, Any]) -> None:
    """Keeps what a page got of a node, for the page that opens the workflow later.

    Args:
        shown: with `rows`, each with `pictures`, places in the host's folders.
    """
    _shown.pop((workflow, node), None)
    _shown[workflow, node] = shown
    while len(_shown) > MOST_SHOWN:
        del _shown[next(iter(_shown))]


def last_shown(query: dict[str, str]) -> dict[str, Any]:
    """What was last shown on a node; empty where there is nothing, or its pictures are gone.

    Args:
        query: `workflow_id`; `node_ids`: all ids that the node may have run under, with commas between.
    """
    keys = [(query.get("workflow_id", ""), node) for node in query.get("node_ids", "").split(",")]
    for key, shown in reversed(list(_shown.items())):  # at once: the next may be put there meanwhile
        if key in keys:
            is_whole = all(host.is_picture_there(each) for row in shown["rows"] for each in row["pictures"])
            return shown if is_whole else {}
    return {}


class LastDrawn:
    """What was drawn last in a few places, as long as all that it was drawn with is the same.

    So that another strength can be chosen for what goes on, without drawing everything anew.
    """

    def __init__(self, places: int = 4):
        self.places = places
        self._kept: dict[str, tuple[list[weakref.ref], Any, Any]] = {}

    def find(self, place: str, things: Sequence[Any], settings: Any) -> Any:
        """What `keep` was given for the very same objects and equal settings; None where there is nothing."""
        known, told, result = self._kept.get(place, ([], None, None))
        is_same = len(known) == len(things) and all(ref() is thing for ref, thing in zip(known, things, strict=True))
        return result if is_same and told == settings else None

    def keep(self, place: str, things: Sequence[Any], settings: Any, result: Any) -> None:
        """Remembers a result; the objects are not kept alive."""
        alive = {key: kept for key, kept in self._kept.items() if key != place and all(ref() for ref in kept[0])}
        self._kept = dict(list(alive.items())[-(self.places - 1) :])
        try:
            self._kept[place] = ([weakref.ref(thing) for thing in things], settings, result)
        except TypeError:  # a plain dict, as the core's nodes give: it is drawn anew each time
            return
