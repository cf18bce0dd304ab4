"""Requests of the page to a run that goes on."""

import unicodedata
from threading import Lock
from typing import Any

from ..basics.errors import raise_if_any
from ..basics.numbers import is_finite

ACTIONS = ("pause", "resume", "finish", "checkpoint", "sample", "learning_rate", "sample_prompts")
MOST_PROMPTS = 16
LONGEST_PROMPT = 4000
HIGHEST_FACTOR = 1000.0


class Controls:
    """Requests: made by the page's thread, taken by the run's thread between two steps.

    Args:
        sample_prompts: the recipe's; a request may replace them for the rest of the run.
    """

    def __init__(self, sample_prompts: tuple[str, ...] = ()):
        self._lock = Lock()
        self._requests: set[str] = set()
        self.is_paused = False
        self.rate_factor = 1.0
        """on the recipe's learning rate"""
        self.sample_prompts = sample_prompts

    @property
    def has_requests(self) -> bool:
        """Whether the run should pause after the step under way and take requests."""
        return bool(self._requests)

    def ask(self, action: str, value: Any = None) -> None:
        """Makes a request.

        Args:
            action: one of ACTIONS.
            value: for learning_rate a factor above 0, for sample_prompts a list of texts.

        Raises:
            InputError: the action is unknown, or its value has another type or range.
        """
        raise_if_any("The control", _problems(action, value))
        with self._lock:
            if action == "learning_rate":
                self.rate_factor = float(value)
            elif action == "sample_prompts":
                self.sample_prompts = tuple(text.strip() for text in value if text.strip())
            if action in ("pause", "resume"):
                self.is_paused = action == "pause"
            self._requests.add(action)

    def take(self, action: str) -> bool:
        """Whether the action was requested since this was last called for it."""
        with self._lock:
            was_asked = action in self._requests
            self._requests.discard(action)
            return was_asked


def _problems(action: str, value: Any) -> list[str]:
    if action not in ACTIONS:
        return [f"action is {str(action)[:40]!r}; choose one of: {', '.join(ACTIONS)}."]
    if action == "learning_rate":
        if isinstance(value, bool) or not is_finite(value) or not 0 < value <= HIGHEST_FACTOR:
            return [
                f"value is {str(value)[:40]!r}; the learning rate is multiplied by it: it must be a number above 0, "
                f"at most {HIGHEST_FACTOR:g}."
            ]
    if action == "sample_prompts":
        if not isinstance(value, list) or len(value) > MOST_PROMPTS or not all(map(_is_prompt, value)):
            prompts = f"at most {MOST_PROMPTS} prompts of at most {LONGEST_PROMPT} characters"
            return [f"value must be a list of {prompts}, none of them half a character (a surrogate)."]
    return []


def _is_prompt(text: Any) -> bool:
    """Half of a character, which JSON may hold, could not be written into the run's folder."""
    is_text = isinstance(text, str) and len(text) <= LONGEST_PROMPT
    return is_text and not any(unicodedata.category(character) == "Cs" for character in text)
