"""A run's folder: its record, its log of steps, its sample pictures and its checkpoints.

<output>/lora_kiln/<name>/<time>/ holds run.json (the recipe, fingerprints of data and models, how the run ended),
metrics.jsonl (one line per event), samples/ and checkpoints/. A crash at any moment leaves all of them readable.
A link in it that leads out of the folder is not followed.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..basics.disk_errors import is_held, remedy
from ..basics.errors import InputError, raise_if_any
from ..basics.files import atomic_write, read, sweep_unfinished
from ..basics.locks import Held, lock_file
from ..basics.long_paths import TooLong, try_length
from ..basics.paths import LinkLeadsOut, raise_if_leading_out
from . import checkpoints
from .checkpoints import State
from .line_log import LineLog
from .records import METRICS, RECORD, MetricsLine, as_bytes, as_text, entries, metrics_blocks, valid_lines

OWNER = "owner.json"
LONGEST_INSIDE = "checkpoints/step000000-000/state.safetensors"
"""the longest path that is written in a run's folder"""
FLUSH_SECONDS = 2.0


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
            raise_if_any("Train LoRA", [unwritable(path, error)])
        try:
            if not self._has_checkpoint():
                check_length(path)
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
        as_bytes(facts)
        self._unrecorded.update(facts)

        def write() -> None:
            self._replace(RECORD, {**entries(self.path), **self._unrecorded})
            self._unrecorded.clear()

        self._try(RECORD, write)

    def log(self, line: Mapping[str, Any]) -> None:
        """Appends a line to metrics.jsonl; it is written within seconds, or as soon as it can be."""
        self._log.add(as_text(line))
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
        unwritten = valid_lines(self._log.unwritten)
        self._log.begin_anew(as_text(line) for line in unwritten if line["step"] <= step)
        self._try(METRICS, self._join_earlier)
        lines = valid_lines(self._log.unwritten)
        if self._cut is None:
            self.flush()
        return lines

    def _join_earlier(self) -> None:
        """Puts what a cut leaves of metrics.jsonl before the unwritten lines, if that could not be done yet."""
        if self._cut is None:
            return
        earlier = [line for lines in metrics_blocks(self.path) for line in lines if line["step"] <= self._cut]
        self._log.begin_anew(map(as_text, [*earlier, *valid_lines(self._log.unwritten)]))
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
            unfinished.write_bytes(as_bytes(facts))

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


def check_length(path: Path) -> None:
    """Raises InputError if a run's folder lies so deep that its checkpoints could not be written."""
    try:
        try_length(Path(os.path.abspath(path / LONGEST_INSIDE)))
    except TooLong as error:
        raise_if_any("Train LoRA", [f"name: a run of this name writes longer paths than can be written: {error}"])


def unwritable(path: Path, error: OSError) -> str:
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
