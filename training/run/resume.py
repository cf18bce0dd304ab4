"""Resuming: which earlier run goes on, and from what state."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..basics.disk_errors import remedy
from ..basics.errors import InputError, raise_if_any
from ..basics.paths import folded
from ..model.learner import Learner
from ..model.state import Damaged
from .checkpoints import State, newest_state
from .folder import RunFolder, open_in
from .origin import Origin, differences
from .progress import Progress, SamplePicture
from .records import Record
from .runs import earlier_runs, namesake, new_run

CONTINUE, CONTINUE_CHANGED, ANEW, REFUSE = (
    "continue it if nothing changed", "continue it even if changed", "start anew", "stop if something changed",
)  # fmt: skip
PREVIOUS = (CONTINUE, CONTINUE_CHANGED, ANEW, REFUSE)
"""Choices for an earlier run of the same name that stopped before its last step."""


@dataclass(frozen=True)
class OpenedRun:
    """A run's folder, and the state in which the run begins."""

    folder: RunFolder
    previous: str
    """the choice, one of PREVIOUS"""
    state: State | None = None
    """None: it begins at step 0"""
    is_same: bool = True
    """True: resumes the folder's run. False: a new run that begins with the LoRA of another run's checkpoint."""
    trains_rest: bool = False
    """whether it resumes a run that was finished by hand, to train it to its last step"""
    was_finished_by_hand: bool = False
    notes: list[str] = field(default_factory=list)


def open_run(root: Path, name: str, origin: Origin, previous: str) -> OpenedRun:
    """Opens the folder of the newest run of this name and origin, so that it goes on, or else a new folder.

    Args:
        root: the folder of all runs.
        origin: recipe, data and models of the run to come.
        previous: one of PREVIOUS.

    Raises:
        InputError: the folder cannot be written, another process has locked it, a checkpoint cannot be read now, or
            `previous` says to stop.
    """
    if previous not in PREVIOUS:
        raise_if_any("Train LoRA", [f"previous_run is {previous!r}; choose one of: {', '.join(PREVIOUS)}."])
    others = {other for other in [namesake(root, name)] if other is not None}
    opened = _opened(root, name, origin, previous, others)
    for other in sorted(others):
        opened.notes.append(
            f"There are runs of {other} too, whose name differs from {name} in case or Unicode form alone: Windows and "
            "macOS take both for one folder. To go on with one of those, write the name as they do."
        )
    return opened


def _opened(root: Path, name: str, origin: Origin, previous: str, others: set[str]) -> OpenedRun:
    """Does what `open_run` says.

    Args:
        others: gets the names of runs that are passed over, since they differ in case or Unicode form only.
    """
    newest: tuple[Path, Record, str] | None = None
    notes: list[str] = []
    for path, record in earlier_runs(root / name) if previous != ANEW else ():
        if (known := record.get("name", name)) != name and folded(known) == folded(name):
            others.add(known)
            continue
        changed = "; ".join(differences(record, origin.plain()))
        newest = newest or (path, record, changed)
        if not changed:
            folder = RunFolder(path, root)  # locked first: what another process has open has not stopped
            try:
                state, damage = _newest(folder.checkpoints)
            except InputError:
                folder.close()
                raise
            if state is not None:
                return _resumed(folder, record, previous, state, damage)
            folder.close()
            notes += damage or [f"The run {folder.id} stopped before its first checkpoint: this one starts anew."]
    if newest is None or not newest[2]:
        return OpenedRun(new_run(root, name), previous, notes=notes)
    return _after_another(root, name, newest, previous)


def _newest(folder: Path) -> tuple[State | None, list[str]]:
    """`newest_state`.

    Raises:
        InputError: a checkpoint cannot be read now.
    """
    try:
        return newest_state(folder)
    except OSError as error:
        problem = (
            f"previous_run: a checkpoint in {folder} cannot be read ({error}): {remedy(error, folder)}. Then queue "
            f"again, and the run goes on from it; or choose {ANEW!r}."
        )
        raise InputError("Train LoRA", [problem]) from error


def _resumed(folder: RunFolder, record: Record, previous: str, state: State, damage: list[str]) -> OpenedRun:
    """A run of the same origin goes on, or has ended and gives its LoRA."""
    steps, step = record.get("steps", 0), state.step
    is_finished, by_hand = record.get("state") == "finished", record.get("finished_by_hand", False)
    has_rest = is_finished and by_hand and step < steps
    was_training_rest = not is_finished and record.get("trains_rest", False)
    trains_rest = was_training_rest or (has_rest and previous == CONTINUE_CHANGED)
    if trains_rest or not is_finished:
        note = f"Goes on from step {step} of the run {folder.id}."
    else:
        note = f"The run {folder.id} was the same: its LoRA is taken."
        if has_rest:
            note += f" It was over at step {step} of {steps}. {how_to_train_the_rest(previous)}"
    return OpenedRun(
        folder,
        previous,
        state,
        trains_rest=trains_rest,
        was_finished_by_hand=by_hand,
        notes=[note, *damage],
    )


def _after_another(root: Path, name: str, newest: tuple[Path, Record, str], previous: str) -> OpenedRun:
    """A new run, as no earlier one of its name is of its origin.

    Args:
        newest: folder and record of the newest run of this name, and what changed since.

    Raises:
        InputError: `previous` says to stop, or to take over from a run that another process has open; a checkpoint
            cannot be read now.
    """
    path, record, changed = newest
    old, owner = path.relative_to(root).as_posix(), open_in(path)

    def anew(*notes: str) -> OpenedRun:
        return OpenedRun(new_run(root, name), previous, notes=list(notes))

    if owner is not None:
        if previous == CONTINUE:
            return anew(f"Starts anew, since it is not the run {old}, which is open in {owner}: {changed}.")
        raise_if_any(
            "Train LoRA",
            [
                f"previous_run: the run {old} is open in {owner}, and this is not the same run: {changed}. Wait until "
                f"it has ended, stop it there, or choose {ANEW!r}."
            ],
        )
    state, damage = _newest(path / "checkpoints")
    if state is None:
        return anew(*(damage or [f"The run {old} stopped before its first checkpoint: this one starts anew."]))
    steps, step, is_finished = record.get("steps", 0), state.step, record.get("state") == "finished"
    has_rest = is_finished and record.get("finished_by_hand", False) and step < steps
    if previous == REFUSE:
        others = repr(ANEW) if is_finished and not has_rest else f"{CONTINUE_CHANGED!r} or {ANEW!r}"
        problem = (
            f"previous_run: the run {old} ended at step {step}, and this is not the same run: {changed}. Undo "
            f"the changes, or choose {others}."
        )
        raise_if_any("Train LoRA", [problem])
    if is_finished and not (has_rest and previous == CONTINUE_CHANGED):
        return anew(
            f"Starts anew, since it is not the run {old}, which has finished with {step} steps: {changed}. To "
            "train its LoRA further, load its file with Load LoRA File and connect it to start."
        )
    if previous == CONTINUE_CHANGED:
        note = f"Takes over what the run {old} had learned in {step} steps. Changed since: {changed}."
        return OpenedRun(new_run(root, name), previous, state, is_same=False, notes=[note, *damage])
    return anew(f"Starts anew, since it is not the run {old}, which stopped at step {step}: {changed}.")


def how_to_train_the_rest(previous: str) -> str:
    """Advice about a run that was finished by hand.

    Args:
        previous: the current choice, one of PREVIOUS.
    """
    if previous == CONTINUE_CHANGED:
        return f"Queued again, the same workflow trains the rest; with previous_run {CONTINUE!r} it gives this LoRA."
    return (
        f"Queued again, the same workflow gives this LoRA. To train the rest set previous_run of Train LoRA to "
        f"{CONTINUE_CHANGED!r}, to begin again to {ANEW!r}."
    )


def load_progress(progress: Progress, opened: OpenedRun) -> None:
    """Loads the progress of the run that is resumed from its checkpoint, its metrics.jsonl and its sample pictures.

    A new run has none, also when it begins with another run's LoRA.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    state, folder = opened.state, opened.folder
    if state is None or not opened.is_same:
        return
    with refused(state):
        progress.load_state_dict(state.state_dict())
    progress.load_metrics(folder.cut_metrics(state.step))
    progress.is_over = progress.is_over and not opened.trains_rest
    for sample in progress.samples:
        pixels = folder.read_picture(sample["filename"])
        if pixels is not None:
            progress.pictures.append(SamplePicture(sample["step"], sample["prompt"], pixels))


def load_learner(learner: Learner, state: State, same_pictures: bool) -> None:
    """Loads adapters, optimizer and averages from a checkpoint.

    Args:
        same_pictures: whether the losses of single pictures are loaded too.

    Raises:
        InputError: the checkpoint does not fit this recipe.
    """
    with refused(state):
        learner.load(state.tensors, state.facts, same_pictures)


@contextmanager
def refused(state: State) -> Iterator[None]:
    """Turns `Damaged` into an `InputError` that says what to do."""
    try:
        yield
    except Damaged as error:
        problem = (
            f"previous_run: the run that stopped at step {state.step} cannot be continued with this recipe "
            f"({error}). Undo the changes, or choose to start anew."
        )
        raise InputError("Train LoRA", [problem]) from error
