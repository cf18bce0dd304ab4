"""A run on the disk: what it is, how it went, what it drew, and where it can go on.

<output>/lora_kiln/<name>/<time>/ holds run.json (the recipe and all else that the LoRA follows from), metrics.jsonl (a
line a step), samples/ and checkpoints/. Everything is written so that a crash at any moment leaves it readable.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from ..basics.errors import raise_if_any
from ..basics.files import atomic_write
from . import checkpoints
from .checkpoints import State
from .origin import Origin, differences

FORMAT = 1
RECORD, METRICS, OWNER = "run.json", "metrics.jsonl", "owner.json"
LARGEST_RECORD = 16 * 2**20
LONGEST_LINE = 2**16
LAST_STEP = 10**9
FLUSH_SECONDS = 2.0
STAMP, STAMP_LENGTH = "%Y%m%d-%H%M%S", 15
CONTINUE, CONTINUE_CHANGED, ANEW, REFUSE = (
    "continue it if nothing changed", "continue it even if changed", "start anew", "stop if something changed",
)  # fmt: skip
PREVIOUS = (CONTINUE, CONTINUE_CHANGED, ANEW, REFUSE)
"""What to do about a run of the same name that stopped before its end."""


class RunFolder:
    """One run's folder, held by this process until it is closed.

    Args:
        path: the folder; it is there.
        root: what the run's id is told from: <root>/<name>/<time>.

    Raises:
        InputError: another process holds it.
    """

    def __init__(self, path: Path, root: Path):
        self.path = path
        self.id = path.relative_to(root).as_posix()
        self._lock = FileLock(path / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            problem = (
                f"name: the run {self.id} is open in {_owner(path)}. Wait until it has ended, stop it there, or give "
                "this LoRA another name."
            )
            raise_if_any("Train LoRA", [problem])
        except OSError as error:
            raise_if_any("Train LoRA", [_unwritable(path, error)])
        self.notes: list[str] = []
        """what could not be written, and why"""
        self._metrics: Any = None
        self._flushed = time.monotonic()
        self._is_broken = False

    @property
    def samples(self) -> Path:
        """Where sample pictures lie."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    def record(self, facts: Mapping[str, Any]) -> None:
        """Adds facts to run.json, in place of those of the same names."""
        try:
            known = read_record(self.path)
        except ValueError:
            known = {"format": FORMAT}
        self._write(RECORD, _text({**known, **facts}))

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl; it is on its way to the disk within seconds."""
        self._try("metrics.jsonl", lambda: self._append(_text(line)), once=True)

    def checkpoint(self, state: State, keep: int) -> Path | None:
        """Writes a checkpoint and deletes older ones; None where it could not be written, and the older ones stay."""
        self.flush()
        path: list[Path] = []
        self._try("a checkpoint", lambda: path.append(checkpoints.write_state(self.checkpoints, state)))
        if not path:
            return None
        checkpoints.prune(path[0], max(1, keep))
        return path[0]

    def keep_picture(self, name: str, pixels: torch.Tensor) -> Path | None:
        """Writes a sample picture (H, W, 3) in [0, 1] as PNG; None where it could not be written."""
        image = Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        path = self.samples / name
        written: list[Path] = []

        def write() -> None:
            self.samples.mkdir(exist_ok=True)
            with atomic_write(path) as unfinished:
                image.save(unfinished, "PNG")
            written.append(path)

        self._try("a sample picture", write)
        return path if written else None

    def picture(self, name: str) -> torch.Tensor | None:
        """A sample picture of before: (H, W, 3) in [0, 1]; None where it is gone."""
        try:
            with Image.open(self.samples / Path(name).name) as image:
                return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)
        except (OSError, ValueError, Image.DecompressionBombError):
            return None

    def cut_metrics(self, step: int) -> list[dict[str, Any]]:
        """Forgets lines of later steps, and what a crash has torn; gives those that stay."""
        self._close_metrics()  # the file is replaced: what is written on would go into the old one
        lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        text = "".join(_text(line) + "\n" for line in lines)
        self._write(METRICS, text)
        return lines

    def flush(self) -> None:
        """Hands the lines so far to the system."""
        if self._metrics is not None:
            self._try("metrics.jsonl", self._metrics.flush, once=True)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Lets go of the folder."""
        self._close_metrics()
        self._lock.release()

    def own(self, facts: Mapping[str, Any]) -> None:
        """Says who holds the folder."""
        self._write(OWNER, _text(facts))

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._try("metrics.jsonl", self._metrics.close)
            self._metrics = None

    def _append(self, text: str) -> None:
        if self._metrics is None:
            self._metrics = (self.path / METRICS).open("a", encoding="utf-8")
        self._metrics.write(text + "\n")
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _write(self, name: str, text: str) -> None:
        def write() -> None:
            with atomic_write(self.path / name) as unfinished:
                unfinished.write_text(text, encoding="utf-8")

        self._try(name, write)

    def _try(self, what: str, write: Any, once: bool = False) -> None:
        """Writes; what cannot be written is noted, and training goes on: what was learned is not lost by it.

        Args:
            once: after it has failed it is not tried again, since what follows would not fit to what is there.
        """
        if once and self._is_broken:
            return
        try:
            write()
        except OSError as error:
            self._is_broken = self._is_broken or once
            note = f"{what} could not be written ({error}): free some space on the disk of {self.path}."
            if note not in self.notes:
                self.notes.append(note)


@dataclass
class Opened:
    """A run's folder, and where the run begins."""

    folder: RunFolder
    state: State | None = None
    """None: at the beginning"""
    is_same: bool = True
    """whether it is the very run that goes on, and not a new one that takes over what another had learned"""
    trains_rest: bool = False
    """whether it goes on although it was over before its last step: it had been finished by hand"""
    notes: list[str] = field(default_factory=list)
    previous: str = CONTINUE
    """what was chosen, one of PREVIOUS"""
    was_finished_by_hand: bool = False


def how_to_train_the_rest(previous: str) -> str:
    """What to do about a run that was finished by hand.

    Args:
        previous: what is chosen now, one of PREVIOUS.
    """
    if previous == CONTINUE_CHANGED:
        return f"Queued again, the same workflow trains the rest; with previous_run {CONTINUE!r} it gives this LoRA."
    return (
        f"Queued again, the same workflow gives this LoRA. To train the rest set previous_run of Train LoRA to "
        f"{CONTINUE_CHANGED!r}, to begin again to {ANEW!r}."
    )


def open_run(root: Path, name: str, origin: Origin, previous: str) -> Opened:
    """See `_opened`; what was chosen goes with it."""
    return replace(_opened(root, name, origin, previous), previous=previous)


def _opened(root: Path, name: str, origin: Origin, previous: str) -> Opened:
    """The folder of a run: that of the run of this name that stopped before its end, or a new one.

    Args:
        root: the folder of all runs.
        previous: one of PREVIOUS.

    Raises:
        InputError: the folder cannot be written, another process holds it, or `previous` says to stop.
    """
    if previous not in PREVIOUS:
        raise_if_any("Train LoRA", [f"previous_run is {previous!r}; choose one of: {', '.join(PREVIOUS)}."])
    found = _newest_run(root / name) if previous != ANEW else None
    if found is None:
        return Opened(_new(root, name))
    record = read_record(found)
    state, damage = checkpoints.newest_state(found / "checkpoints")
    old = found.relative_to(root).as_posix()
    if state is None:
        notes = [f"The run {old} stopped before its first checkpoint: this one starts anew."] if not damage else damage
        return Opened(_new(root, name), notes=notes)
    changed = differences(record, origin.plain())
    is_finished = record.get("state") == "finished"
    by_hand = record.get("finished_by_hand") is True
    has_rest = is_finished and by_hand and state.step < _steps(record)
    if not changed:
        # One that was stopped while it trained the rest goes on with it.
        is_under_way = not is_finished and record.get("trains_rest") is True
        trains_rest = is_under_way or (has_rest and previous == CONTINUE_CHANGED)
        told = (
            f"Goes on from step {state.step} of the run {old}."
            if trains_rest or not is_finished
            else f"The run {old} was the same: its LoRA is taken."
        )
        if has_rest and not trains_rest:
            told += f" It was over at step {state.step} of {_steps(record)}. {how_to_train_the_rest(previous)}"
        notes = [told, *damage]
        return Opened(RunFolder(found, root), state, True, trains_rest, notes, was_finished_by_hand=by_hand)
    listed = "; ".join(changed)
    if previous == REFUSE:
        others = repr(ANEW) if is_finished and not has_rest else f"{CONTINUE_CHANGED!r} or {ANEW!r}"
        problem = (
            f"previous_run: the run {old} ended at step {state.step}, and this is not the same run: {listed}. Undo "
            f"the changes, or choose {others}."
        )
        raise_if_any("Train LoRA", [problem])
    if is_finished and not (has_rest and previous == CONTINUE_CHANGED):
        note = (
            f"Starts anew, since it is not the run {old}, which has finished with {state.step} steps: {listed}. To "
            "train its LoRA further, load its file with Load LoRA File and connect it to start."
        )
        return Opened(_new(root, name), notes=[note])
    if previous == CONTINUE_CHANGED:
        note = f"Takes over what the run {old} had learned in {state.step} steps. Changed since: {listed}."
        return Opened(_new(root, name), state, False, notes=[note, *damage])
    note = f"Starts anew, since it is not the run {old}, which stopped at step {state.step}: {listed}."
    return Opened(_new(root, name), notes=[note])


def read_record(path: Path) -> dict[str, Any]:
    """A run's run.json.

    Raises:
        ValueError: it is not there, not readable or not of this format.
    """
    try:
        if (path / RECORD).stat().st_size > LARGEST_RECORD:
            raise ValueError(f"{path / RECORD} is too large")
        found = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path / RECORD} cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path / RECORD} has another format than {FORMAT}")
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that are whole: objects with a "step"."""
    lines = []
    try:
        with (path / METRICS).open(encoding="utf-8", errors="replace") as file:
            while text := file.readline(LONGEST_LINE):
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue
                if isinstance(line, dict) and type(step := line.get("step")) is int and 0 <= step <= LAST_STEP:
                    lines.append(line)
    except OSError:
        return []
    return lines


def runs_below(root: Path) -> Iterator[Path]:
    """The folders of all runs, the newest last."""
    found = [path.parent for folders in ("*", "*/*", "*/*/*") for path in root.glob(f"{folders}/*/{RECORD}")]
    yield from sorted(found, key=lambda path: path.name)


def _steps(record: Mapping[str, Any]) -> int:
    """The steps that a run was to have; 0 where its record does not say."""
    steps = record.get("steps")
    return steps if type(steps) is int else 0


def _newest_run(folder: Path) -> Path | None:
    """The newest run of a name whose record can be read."""
    for path in reversed(list(_runs(folder))):
        try:
            read_record(path)
            return path
        except ValueError:
            continue
    return None


def _runs(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if (path / RECORD).is_file())
    except OSError:
        return


def _new(root: Path, name: str) -> RunFolder:
    # Later runs come later by name, even when the clock was set back.
    newest = max((path.name for path in _runs(root / name)), default="")
    stamp = max(time.strftime(STAMP), newest[:STAMP_LENGTH])
    number = 1
    while True:
        path = root / name / (stamp if number == 1 else f"{stamp}-{number:03}")
        if path.name <= newest:
            number += 1
            continue
        try:
            path.mkdir(parents=True)
            return RunFolder(path, root)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise_if_any("Train LoRA", [_unwritable(path, error)])


def _unwritable(path: Path, error: OSError) -> str:
    return (
        f"name: the run's folder {path} cannot be written ({error.strerror or error}). Make ComfyUI's output folder "
        "writable, or free space on its disk: checkpoints, without which a run cannot go on after a stop, lie there."
    )


def _owner(path: Path) -> str:
    try:
        found = json.loads((path / OWNER).read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
