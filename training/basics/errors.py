"""Errors a person can act on."""

from collections.abc import Sequence
from typing import Any


class InputError(ValueError):
    """Bad input, with every problem found in it.

    Args:
        subject: what was looked at, e.g. "LoRA Config".
        problems: one sentence each: the field, what came, what is allowed, what to do.
    """

    def __init__(self, subject: str, problems: Sequence[str]):
        self.subject = subject
        self.problems = tuple(problems)
        lines = "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(f"{subject} cannot be used:\n{lines}")


class Refusal(ValueError):
    """What the page asks for cannot be done as things stand; the message says why.

    Args:
        status: HTTP's number for it, 4xx.
        details: more for the page, as JSON takes it.
    """

    def __init__(self, status: int, message: str, **details: Any):
        self.status = status
        self.details = details
        super().__init__(message)


def raise_if_any(subject: str, problems: Sequence[str]) -> None:
    """Raises one `InputError` that lists all problems, if there are any."""
    if problems:
        raise InputError(subject, problems)
