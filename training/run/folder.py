"""A run's folder: its record, its log of steps, its sample pictures and its checkpoints.

<output>/lora_kiln/<name>/<time>/ holds run.json (the recipe, fingerprints of data and models, how the run ended),
metrics.jsonl (one line per event), samples/ and checkpoints/. A crash at any moment leaves all of them readable.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from pydantic import Field, TypeAdapter
from typing_extensions import Required, TypedDict

from ..basics.errors import raise_if_any
from ..basics.files import atomic_write
from . import checkpoints
from .checkpoints import State
from .progress import SampleFile, Step

FORMAT = 1
RECORD, METRICS, OWNER = "run.json", "metrics.jsonl", "owner.json"
LARGEST_RECORD = 16 * 2**20
LONGEST_LINE = 2**18
BLOCK = 2**16
"""bytes of metrics.jsonl that are read at a time: other threads wait meanwhile"""
DEEPEST = 4
"""levels of a run's folder below the root: a LoRA's name may have three parts"""
LARGEST_NUMBER = 1e300
FLUSH_SECONDS = 2.0
STAMP, STAMP_LENGTH = "%Y%m%d-%H%M%S", 15

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
        InputError: another process has locked it.
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
        """files that could not be written, and why"""
        self._metrics: Any = None
        self._flushed = time.monotonic()
        self._is_broken = False

    @property
    def samples(self) -> Path:
        """Folder of the sample pictures."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def record(self, facts: Mapping[str, Any]) -> None:
        """Adds facts to run.json, or replaces them there; entries that this version does not know stay."""
        self._write(RECORD, _text({**_entries(self.path), **facts}))

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl; it is flushed within seconds."""
        self._try("metrics.jsonl", lambda: self._append(_text(line)), once=True)

    def checkpoint(self, state: State, keep: int) -> Path | None:
        """Writes a checkpoint and deletes all but the last `keep`. None: it could not be written; earlier ones stay."""
        self.flush()
        path: list[Path] = []
        self._try("a checkpoint", lambda: path.append(checkpoints.write_state(self.checkpoints, state)))
        if not path:
            return None
        checkpoints.prune(path[0], max(1, keep))
        return path[0]

    def write_picture(self, name: str, pixels: torch.Tensor) -> Path | None:
        """Writes a sample picture (H, W, 3) in [0, 1] as PNG. None: it could not be written."""
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

    def read_picture(self, name: str) -> torch.Tensor | None:
        """A sample picture: (H, W, 3) in [0, 1]; None if it cannot be read."""
        try:
            with Image.open(self.samples / Path(name).name) as image:
                return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)
        except (OSError, ValueError, Image.DecompressionBombError):
            return None

    def cut_metrics(self, step: int) -> list[MetricsLine]:
        """Deletes lines of later steps and incomplete lines from metrics.jsonl. Returns the others."""
        self._close_metrics()  # the file is replaced: an open handle would write to the old one
        lines = [line for line in read_metrics(self.path) if line["step"] <= step]
        text = "".join(_text(line) + "\n" for line in lines)
        self._write(METRICS, text)
        return lines

    def flush(self) -> None:
        """Hands buffered lines to the operating system."""
        if self._metrics is not None:
            self._try("metrics.jsonl", self._metrics.flush, once=True)
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Unlocks the folder."""
        self._close_metrics()
        self._lock.release()

    def write_owner(self, facts: Mapping[str, Any]) -> None:
        """Writes which process has locked the folder: pid, host, since."""
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

    def _try(self, what: str, write: Callable[[], Any], once: bool = False) -> None:
        """Calls `write`. An OSError becomes a note and training goes on.

        Args:
            what: the file, for the note.
            once: after one failure it is not called again: a log with a gap would be wrong.
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


def read_record(path: Path) -> Record:
    """Reads a run's run.json.

    Raises:
        ValueError: it is missing, unreadable, too large, or an entry has another type than `Record` says.
    """
    try:
        if (path / RECORD).stat().st_size > LARGEST_RECORD:
            raise ValueError("it is too large")
        return _RECORD.validate_json((path / RECORD).read_bytes(), strict=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / RECORD} cannot be read: {error}") from error


def _entries(path: Path) -> dict[str, Any]:
    """All entries of a run's run.json as they stand; the format alone if the file is missing or unreadable."""
    try:
        is_small = (path / RECORD).stat().st_size <= LARGEST_RECORD
        found = json.loads((path / RECORD).read_bytes(), parse_constant=lambda _: None) if is_small else None
    except (OSError, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {"format": FORMAT}


def read_metrics(path: Path) -> list[MetricsLine]:
    """The complete and valid lines of a run's metrics.jsonl."""
    return [line for lines in metrics_blocks(path) for line in lines]


def metrics_blocks(path: Path) -> Iterator[list[MetricsLine]]:
    """The lines of `read_metrics`, some thousand at a time: a long file takes memory only for what is kept of it."""
    try:
        with (path / METRICS).open("rb") as file:
            while block := file.read(BLOCK):
                yield _valid_lines(block + file.readline(LONGEST_LINE))
    except OSError:
        return


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
    yield from sorted(_run_folders(root, DEEPEST), key=lambda path: path.name)


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


def newest_run(folder: Path) -> Path | None:
    """The newest run below a LoRA's folder whose record can be read."""
    for path in reversed(_runs(folder)):
        try:
            read_record(path)
            return path
        except ValueError:
            continue
    return None


def new_run(root: Path, name: str) -> RunFolder:
    """A new folder for a run.

    Raises:
        InputError: it cannot be written.
    """
    # Later runs must sort after earlier ones, even when the clock was set back.
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


def _runs(folder: Path) -> list[Path]:
    """The runs of a LoRA's folder, oldest first."""
    try:
        return sorted(path for path in folder.iterdir() if (path / RECORD).is_file())
    except OSError:
        return []


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
