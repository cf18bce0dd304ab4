"""A run's folder: its record, its log of steps, its sample pictures and its checkpoints.

<output>/lora_kiln/<name>/<time>/ holds run.json (the recipe, fingerprints of data and models, how the run ended),
metrics.jsonl (one line per event), samples/ and checkpoints/. A crash at any moment leaves all of them readable.
A link in it that leads out of the folder is not followed.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, TypeAdapter
from typing_extensions import Required, TypedDict

from ..basics.disk_errors import is_held, remedy
from ..basics.errors import InputError, raise_if_any
from ..basics.files import atomic_write, patiently, read, sweep_unfinished
from ..basics.locks import Held, lock_file
from ..basics.long_paths import TooLong, try_length
from ..basics.paths import LinkLeadsOut, folded, raise_if_leading_out
from . import checkpoints
from .checkpoints import State
from .line_log import LineLog
from .progress import SampleFile, Step

FORMAT = 1
RECORD, METRICS, OWNER = "run.json", "metrics.jsonl", "owner.json"
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, LinkLeadsOut)
"""errors of a file that is not there; after any other it may be whole"""
LARGEST_RECORD = 16 * 2**20
LONGEST_LINE = 2**18
BLOCK = 2**16
"""bytes of metrics.jsonl that are read at a time: other threads wait meanwhile"""
DEEPEST = 4
"""levels of a run's folder below the root: a LoRA's name may have three parts"""
LONGEST_INSIDE = "checkpoints/step000000-000/state.safetensors"
"""the longest path that is written in a run's folder"""
LARGEST_NUMBER = 1e300
FLUSH_SECONDS = 2.0
STAMP = "%Y%m%d-%H%M%S"
STAMPED = re.compile(r"([0-9]{8}-[0-9]{6})(?:-([0-9]{3,200}))?")
"""The names of runs: the time, and a number if there are several of that time. A person may have renamed others."""

Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]


class Record(TypedDict, total=False):
    """run.json."""

    format: Required[Literal[1]]
    run: str
    name: str
    workflow_id: str
    prompt_id: str
    node_id: str
    state: str
    """running, finished, interrupted or failed"""
    message: str
    notes: list[str]
    steps: int
    """of the whole run"""
    epochs: int
    epoch: int
    """reached when the run ended; 0: it has not ended"""
    started_at: Number
    """seconds since 1970"""
    elapsed: Number
    """seconds"""
    finished_by_hand: bool
    trains_rest: bool
    """whether a run that was finished by hand goes on to its last step"""
    recipe: dict[str, Any]
    """see `origin.Origin`, as are the next two"""
    dataset: dict[str, Any]
    models: dict[str, Any]
    versions: dict[str, str]


class MetricsLine(TypedDict, total=False):
    """A line of metrics.jsonl: one of loss, validation_loss, mark and sample, and the step it belongs to."""

    step: Required[Step]
    loss: Number
    learning_rate: Number
    validation_loss: Number
    mark: str
    text: str
    sample: SampleFile


_RECORD, _LINE, _LINES = TypeAdapter(Record), TypeAdapter(MetricsLine), TypeAdapter(list[MetricsLine])


class RunFolder:
    """A run's folder, locked by this process until `close`.

    Args:
        path: an existing folder.
        root: of all runs; the run's id is the path below it.

    Raises:
        InputError: another process has locked it, or its path is too long.
    """

    def __init__(self, path: Path, root: Path):
        self.path = path
        self.id = path.relative_to(root).as_posix()
        try:
            self._lock = lock_file(path / "lock")
        except Held:
            problem = (
                f"name: the run {self.id} is open in {_owner(path)}. Wait until it has ended, stop it there, or give "
                "this LoRA another name."
            )
            raise_if_any("Train LoRA", [problem])
        except PermissionError as error:
            problem = (
                f"name: {path / 'lock'} cannot be opened ({error.strerror}). Make ComfyUI's output folder writable; if "
                "it is, another program holds the file, such as a virus scanner or OneDrive: let it leave that folder "
                "out, and queue again."
            )
            raise_if_any("Train LoRA", [problem])
        except OSError as error:
            raise_if_any("Train LoRA", [_unwritable(path, error)])
        try:
            if not self._has_checkpoint():
                _check_length(path)
        except InputError:
            self._lock.release()
            raise
        self.notes: list[str] = []
        """files that could not be written, and why"""
        self._log = LineLog(path / METRICS)
        self._cut: int | None = None
        """lines of later steps are to be deleted from metrics.jsonl, which cannot be read yet, before it is written"""
        self._flushed = time.monotonic()
        self._unrecorded: dict[str, Any] = {}
        """facts that could not be written into run.json yet"""
        sweep_unfinished(path)

    @property
    def samples(self) -> Path:
        """Folder of the sample pictures."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def _has_checkpoint(self) -> bool:
        """Whether checkpoints can be written here, for one was; True, too, where they cannot be listed now."""
        try:
            return bool(checkpoints.checkpoints(self.checkpoints))
        except OSError:
            return True

    def record(self, facts: Mapping[str, Any]) -> None:
        """Adds facts to run.json, or replaces them there; entries that this version does not know stay.

        Facts that cannot be written now are written by the next call of it or of `flush`.

        Raises:
            TypeError, ValueError: the facts are no JSON, or no text; none of them is kept.
        """
        _bytes(facts)
        self._unrecorded.update(facts)

        def write() -> None:
            self._replace(RECORD, {**_entries(self.path), **self._unrecorded})
            self._unrecorded.clear()

        self._try(RECORD, write)

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl; it is written within seconds, or as soon as it can be."""
        self._log.add(_text(line))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flushed = time.monotonic()
            try:
                self._log.write(waits=False)
            except OSError as error:
                if not is_held(error):  # else it will be free at the next line or the next checkpoint
                    self._note(METRICS, error)

    def checkpoint(self, state: State, keep: int) -> Path | None:
        """Writes a checkpoint and deletes all but the last `keep`. None: it could not be written; earlier ones stay."""
        self.flush()
        path: list[Path] = []
        self._try("a checkpoint", lambda: path.append(checkpoints.write_state(self.checkpoints, state)))
        if not path:
            return None
        with contextlib.suppress(OSError):  # they are deleted after the next one
            checkpoints.prune(path[0], max(1, keep))
        return path[0]

    def write_picture(self, name: str, pixels: torch.Tensor) -> Path | None:
        """Writes a sample picture (H, W, 3) in [0, 1] as PNG. None: it could not be written."""
        image = Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
        path = self.samples / name
        written: list[Path] = []

        def write() -> None:
            raise_if_leading_out(self.samples, self.path)
            self.samples.mkdir(exist_ok=True)
            with atomic_write(path) as unfinished:
                image.save(unfinished, "PNG")
            written.append(path)

        self._try("a sample picture", write)
        return path if written else None

    def read_picture(self, name: str) -> torch.Tensor | None:
        """A sample picture: (H, W, 3) in [0, 1]; None if it cannot be read."""
        path = self.samples / Path(name).name
        try:
            raise_if_leading_out(path, self.path)
            with Image.open(path) as image:
                return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)
        except (OSError, ValueError, Image.DecompressionBombError):
            return None

    def cut_metrics(self, step: int) -> list[MetricsLine]:
        """Deletes lines of later steps and incomplete lines from metrics.jsonl. Returns the others.

        While the file cannot be read, only those that are not written yet are returned.
        """
        self.flush()
        if not self._log.is_anew:
            self._cut = step
        elif self._cut is not None:
            self._cut = min(step, self._cut)
        unwritten = _valid_lines(self._log.unwritten)
        self._log.begin_anew(_text(line) for line in unwritten if line["step"] <= step)
        self._try(METRICS, self._join_earlier)
        lines = _valid_lines(self._log.unwritten)
        if self._cut is None:
            self.flush()
        return lines

    def _join_earlier(self) -> None:
        """Puts what a cut leaves of metrics.jsonl before the unwritten lines, if that could not be done yet."""
        if self._cut is None:
            return
        earlier = [line for lines in metrics_blocks(self.path) for line in lines if line["step"] <= self._cut]
        self._log.begin_anew(map(_text, [*earlier, *_valid_lines(self._log.unwritten)]))
        self._cut = None

    def _write_log(self) -> None:
        self._join_earlier()
        self._log.write()

    def flush(self) -> None:
        """Writes the lines of metrics.jsonl, and the facts of run.json, that are not written yet."""
        self._flushed = time.monotonic()
        self._try(METRICS, self._write_log)
        if self._unrecorded:
            self.record({})

    def close(self) -> None:
        """Writes what is not written yet, and unlocks the folder."""
        try:
            self.flush()
        finally:
            self._lock.release()

    def write_owner(self, facts: Mapping[str, Any]) -> None:
        """Writes which process has locked the folder: pid, host, since."""
        self._try(OWNER, lambda: self._replace(OWNER, facts))

    def _replace(self, name: str, facts: Mapping[str, Any]) -> None:
        with atomic_write(self.path / name) as unfinished:
            unfinished.write_bytes(_bytes(facts))

    def _try(self, what: str, write: Callable[[], Any]) -> None:
        """Calls `write`. An OSError becomes a note and training goes on.

        Args:
            what: the file, for the note.
        """
        try:
            write()
        except OSError as error:
            self._note(what, error)

    def _note(self, what: str, error: OSError) -> None:
        to_do = "remove that link" if isinstance(error, LinkLeadsOut) else remedy(error, self.path)
        # The names of unfinished files, which the error's text has, are other ones each time.
        note = f"{what} could not be written ({error.strerror or error}): {to_do}."
        if note not in self.notes:
            self.notes.append(note)


def read_record(path: Path) -> Record:
    """Reads a run's run.json.

    Raises:
        ValueError: it is missing, too large, or an entry has another type than `Record` says.
        OSError: it cannot be read now: another program holds it, its disk is away ...
    """
    try:
        raise_if_leading_out(path / RECORD, path)
        if (path / RECORD).stat().st_size > LARGEST_RECORD:
            raise ValueError("it is too large")
        return _RECORD.validate_json(read(path / RECORD), strict=True)
    except (*MISSING, ValueError) as error:
        raise ValueError(f"{path / RECORD} cannot be read: {error}") from error


def _entries(path: Path) -> dict[str, Any]:
    """All entries of a run's run.json as they stand; the format alone if the file is missing or no record.

    Raises:
        OSError: another program lets nobody read it.
    """
    try:
        raise_if_leading_out(path / RECORD, path)
        is_small = (path / RECORD).stat().st_size <= LARGEST_RECORD
        found = json.loads(read(path / RECORD), parse_constant=lambda _: None) if is_small else None
        _bytes(found)
    except (FileNotFoundError, LinkLeadsOut, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {"format": FORMAT}


def read_metrics(path: Path) -> list[MetricsLine]:
    """The complete and valid lines of a run's metrics.jsonl.

    Raises:
        OSError: see `metrics_blocks`.
    """
    return [line for lines in metrics_blocks(path) for line in lines]


def metrics_blocks(path: Path) -> Iterator[list[MetricsLine]]:
    """The lines of `read_metrics`, some thousand at a time: a long file takes memory only for what is kept of it.

    Raises:
        OSError: the file is there, but cannot be read now.
    """
    with contextlib.suppress(*MISSING):
        raise_if_leading_out(path / METRICS, path)
        with patiently(lambda: (path / METRICS).open("rb")) as file:
            while block := file.read(BLOCK):
                yield _valid_lines(block + file.readline(LONGEST_LINE))


def _valid_lines(block: bytes) -> list[MetricsLine]:
    texts = [text for text in block.split(b"\n") if text]
    with contextlib.suppress(ValueError):  # all at once takes a fourth of the time
        lines = _LINES.validate_json(b"[" + b",".join(texts) + b"]", strict=True)
        if len(lines) == len(texts):
            return lines
    lines = []
    for text in texts:
        with contextlib.suppress(ValueError):
            lines.append(_LINE.validate_json(text, strict=True))
    return lines


def runs_below(root: Path) -> Iterator[Path]:
    """The folders of all runs, the newest last."""
    yield from sorted(_run_folders(root, DEEPEST), key=lambda path: (_order(path), path.name))


def _run_folders(folder: Path, deeper: int) -> Iterator[Path]:
    """The folders with a record below a folder; nothing below such a folder is looked at."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:
        return
    if deeper < DEEPEST - 1 and any(entry.name == RECORD for entry in found):
        yield folder
    elif deeper:
        for entry in found:
            if entry.is_dir():
                yield from _run_folders(folder / entry.name, deeper - 1)


def namesake(root: Path, name: str) -> str | None:
    """The folder of other runs whose name differs from this one in case or Unicode form only; None: there is none."""
    folder, found = root, []
    for part in name.split("/"):
        try:
            there = {each.name for each in folder.iterdir()}
        except OSError:
            return None
        found.append(part if part in there else next((each for each in there if folded(each) == folded(part)), ""))
        if not found[-1]:
            return None
        folder = folder / found[-1]
    return None if found == name.split("/") else "/".join(found)


def earlier_runs(folder: Path) -> Iterator[tuple[Path, Record]]:
    """The runs below a LoRA's folder whose record is one, the newest first.

    Raises:
        InputError: a record cannot be read now; the run must not be passed over.
    """
    try:
        found = [path for path in folder.iterdir() if (path / RECORD).is_file()]
    except OSError:
        return
    for path in sorted(found, key=_order, reverse=True):
        try:
            record = read_record(path)
        except ValueError:
            continue
        except OSError as error:
            problem = (
                f"previous_run: {path / RECORD} cannot be read ({error.strerror or error}): {remedy(error, path)}. "
                "Then queue again, or choose to start anew."
            )
            raise InputError("Train LoRA", [problem]) from error
        yield path, record


def open_in(path: Path, patience: float | None = None) -> str | None:
    """The process that has a run open, in words; None: no process has.

    Args:
        patience: see `lock_file`.
    """
    try:
        lock_file(path / "lock", patience).release()
    except Held:
        return _owner(path)
    except OSError:
        return None
    return None


def new_run(root: Path, name: str) -> RunFolder:
    """A new folder for a run.

    Raises:
        InputError: it cannot be written.
    """
    folder = path = root / name
    _check_length(folder / f"{time.strftime(STAMP)}-000")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        newest = max((_stamp(each.name) for each in folder.iterdir()), default=("", 0))
        # Later runs must sort after earlier ones, even when the clock was set back.
        now = time.strftime(STAMP)
        stamp, first = (now, 1) if now > newest[0] else (newest[0], newest[1] + 1)
        for number in count(first):
            path = folder / (stamp if number == 1 else f"{stamp}-{number:03}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
    except OSError as error:
        raise_if_any("Train LoRA", [_unwritable(path, error)])
    return RunFolder(path, root)


def _stamp(name: str) -> tuple[str, int]:
    """(time, number) in a run's name; ("", 0) for another name."""
    found = STAMPED.fullmatch(name)
    return (found[1], int(found[2] or 1)) if found else ("", 0)


def _order(path: Path) -> tuple[str, int]:
    """The (time, number) of a run; of a renamed one the time when it began."""
    if STAMPED.fullmatch(path.name):
        return _stamp(path.name)
    try:
        return time.strftime(STAMP, time.localtime(read_record(path).get("started_at", 0.0))), 0
    except (ValueError, OverflowError, OSError):
        return "", 0


def _check_length(path: Path) -> None:
    """Raises InputError if a run's folder lies so deep that its checkpoints could not be written."""
    try:
        try_length(Path(os.path.abspath(path / LONGEST_INSIDE)))
    except TooLong as error:
        raise_if_any("Train LoRA", [f"name: a run of this name writes longer paths than can be written: {error}"])


def _unwritable(path: Path, error: OSError) -> str:
    to_do = remedy(error, "ComfyUI's output folder")
    return (
        f"name: the run's folder {path} cannot be written ({error.strerror or error}). {to_do[0].upper()}{to_do[1:]}. "
        "Checkpoints, without which a run cannot go on after a stop, lie there."
    )


def _owner(path: Path) -> str:
    try:
        raise_if_leading_out(path / OWNER, path)
        found = json.loads(read(path / OWNER))
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _bytes(value: Any) -> bytes:
    return _text(value).encode()


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
