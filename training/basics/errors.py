"""Errors that say what to do."""

import re
import reprlib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

MOST_TOLD = 50
"""problems of one input that are listed"""


class InputError(ValueError):
    """Unusable input, with every problem found in it; of very many, the first and their number.

    Args:
        subject: the input, e.g. "LoRA Config".
        problems: a sentence each: the field, its value, what is allowed, what to do.
    """

    def __init__(self, subject: str, problems: Sequence[str]):
        self.subject = subject
        more = len(problems) - MOST_TOLD
        told = problems if more <= 1 else [*problems[:MOST_TOLD], f"There are {more:,} more problems."]
        self.problems = tuple(told)
        lines = "\n".join(f"- {problem}" for problem in self.problems)
        super().__init__(f"{subject} cannot be used:\n{lines}")


class Refusal(ValueError):
    """A request of the page that cannot be fulfilled in the present state; the message says why.

    Args:
        status: HTTP status, 4xx.
        details: further JSON values for the page.
    """

    def __init__(self, status: int, message: str, **details: Any):
        self.status = status
        self.details = details
        super().__init__(message)


def raise_if_any(subject: str, problems: Sequence[str]) -> None:
    """Raises one `InputError` with all problems, if there are any."""
    if problems:
        raise InputError(subject, problems)


def problems_of(error: ValidationError) -> list[str]:
    """A sentence for each problem that pydantic found: the field, its value, what is allowed."""
    sentences = []
    for each in error.errors(include_url=False):
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in each["loc"]).removeprefix(".")
        if each["type"] == "missing":
            sentences.append(f"{field} is missing.")
        else:
            allowed = re.sub(r"^\w+ should ", "it must ", each["msg"])
            sentences.append(f"{field} is {reprlib.repr(each['input'])}; {allowed}.")
    return sentences
