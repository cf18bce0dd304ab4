"""What a check is, and what comes of it: passed with a figure, failed with an error, or not there with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from check.ground import Ground

PASSED, FAILED, NOT_THERE = "passed", "failed", "not there"


class NotThereError(Exception):
    """This machine lacks what the check is about, and the pack does without; the message says what is lacking."""


class FailedError(Exception):
    """Something works otherwise than the pack needs; the message says how, and what to do where that is known."""


@dataclass(frozen=True)
class Check:
    """Something that is tried on a person's machine."""

    group: str
    name: str
    run: Callable[[Ground], str]
    """Gives the figure to report. Raises NotThereError; any other error means that the check has failed."""


@dataclass(frozen=True)
class Result:
    """What came of a check."""

    check: Check
    outcome: str
    text: str
    """figure, error or reason"""
    seconds: float

    def line(self) -> str:
        """The line of the report."""
        took = f" ({self.seconds:.0f} s)" if self.seconds >= 1.0 else ""
        return f"{self.outcome:9}  {self.check.group:9}  {self.check.name}: {self.text}{took}"


def result_of(check: Check, ground: Ground) -> Result:
    """Runs a check. An error of any kind is its result: the other checks go on."""
    started = time.monotonic()
    try:
        outcome, text = PASSED, check.run(ground)
    except NotThereError as reason:
        outcome, text = NOT_THERE, str(reason)
    except FailedError as error:
        outcome, text = FAILED, str(error)
    except Exception as error:
        outcome, text = FAILED, in_words(error)
    return Result(check, outcome, text, time.monotonic() - started)


def results(checks: Iterable[Check], ground: Ground) -> Iterator[Result]:
    """Runs checks one after another."""
    for check in checks:
        yield result_of(check, ground)


def in_words(error: BaseException) -> str:
    """An error's class and the first line of its message."""
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
