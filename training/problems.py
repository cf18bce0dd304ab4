"""Errors a person can act on."""

from collections.abc import Sequence


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


def raise_if_any(subject: str, problems: Sequence[str]) -> None:
    """Raises one `InputError` that lists all problems, if there are any."""
    if problems:
        raise InputError(subject, problems)
