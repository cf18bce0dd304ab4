"""The files of a run's folder that tell how it went: run.json, its record, and metrics.jsonl, its log of steps.

A link that leads out of the folder is not followed.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from typing_extensions import Required, TypedDict

from ..basics.files import patiently, read
from ..basics.paths import LinkLeadsOut, raise_if_leading_out
from .progress import SampleFile, Step

FORMAT = 1
RECORD, METRICS = "run.json", "metrics.jsonl"
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, LinkLeadsOut)
"""errors of a file that is not there; after any other it may be whole"""
LARGEST_RECORD = 16 * 2**20
LONGEST_LINE = 2**18
BLOCK = 2**16
"""bytes of metrics.jsonl that are read at a time: other threads wait meanwhile"""
LARGEST_NUMBER = 1e300

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


def entries(path: Path) -> dict[str, Any]:
    """All entries of a run's run.json as they stand; the format alone if the file is missing or no record.

    Raises:
        OSError: another program lets nobody read it.
    """
    try:
        raise_if_leading_out(path / RECORD, path)
        is_small = (path / RECORD).stat().st_size <= LARGEST_RECORD
        found = json.loads(read(path / RECORD), parse_constant=lambda _: None) if is_small else None
        as_bytes(found)
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
                yield valid_lines(block + file.readline(LONGEST_LINE))


def valid_lines(block: bytes) -> list[MetricsLine]:
    """The complete and valid lines of a part of metrics.jsonl."""
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


def as_bytes(value: Any) -> bytes:
    """JSON in UTF-8.

    Raises:
        TypeError, ValueError: the value is no JSON, or no text.
    """
    return as_text(value).encode()


def as_text(value: Any) -> str:
    """JSON on one line.

    Raises:
        TypeError, ValueError: the value is no JSON.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
