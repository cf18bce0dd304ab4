"""Settings of single layers by name pattern: lines such as `output_blocks.* rank=8 alpha=4 lr=0.5`."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from ..basics.errors import raise_if_any

DIFFUSION_MODEL = "diffusion_model."
KEYS = ("rank", "alpha", "lr")
MOST_RULES = 2000
"""each is compared with each layer"""


@dataclass(frozen=True)
class LayerRule:
    """One line: the settings of the layers that its pattern fits."""

    pattern: str
    """Matched as file names are: * is any text, dots included, ? one character."""
    rank: int | None = None
    """None = the recipe's; 0 = no adapter."""
    alpha: float | None = None
    """None = the recipe's, also where the rule sets rank."""
    learning_rate: float = 1.0
    """A factor on the recipe's learning rate."""

    def fits(self, name: str) -> bool:
        """Whether a layer's module path fits, with or without `diffusion_model.` before it."""
        # A pattern such as *ff* must not fit every layer by the letters of the prefix.
        whole = self.pattern.startswith(DIFFUSION_MODEL)
        return _matcher(self.pattern).match(name if whole else name.removeprefix(DIFFUSION_MODEL)) is not None


@lru_cache(maxsize=2 * MOST_RULES)
def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def parse_layer_rules(text: str) -> tuple[LayerRule, ...]:
    """The rules of a text, one a line; # begins a comment.

    Raises:
        InputError: naming every line that cannot be read.
    """
    rules, problems = [], []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            rules.append(_rule(words))
        except ValueError as error:
            problems.append(
                f"layer_rules line {number} is {line.strip()!r:.200}: {error}. Write a pattern and then rank=, alpha= "
                "or lr=, as in 'output_blocks.* rank=8 alpha=4 lr=0.5'."
            )
    if len(rules) > MOST_RULES:
        problems.append(
            f"layer_rules has {len(rules):,} rules; it must have at most {MOST_RULES:,}: use wider patterns."
        )
    raise_if_any("LoRA Config", problems)
    return tuple(rules)


def rule_for(rules: Sequence[LayerRule], name: str) -> LayerRule:
    """The last rule that fits a layer's module path; where none fits, a rule without settings."""
    return next((rule for rule in reversed(rules) if rule.fits(name)), LayerRule("*"))


def check_layer_rules(rules: Sequence[LayerRule], names: Iterable[str]) -> None:
    """Refuses patterns that fit none of the module paths, which would be without effect.

    Raises:
        InputError: naming every such pattern.
    """
    names = list(names)
    problems = [
        f"layer_rules has the pattern {rule.pattern!r}, which fits none of the {len(names)} chosen layers, "
        f"such as {names[0].removeprefix(DIFFUSION_MODEL)}: correct it, or choose more targets."
        for rule in rules
        if names and not any(rule.fits(name) for name in names)
    ]
    raise_if_any("LoRA Config", problems)


def _rule(words: list[str]) -> LayerRule:
    pattern, *settings = words
    if "=" in pattern:
        raise ValueError("it has no pattern")
    if not settings:
        raise ValueError("it sets nothing")
    values: dict[str, float] = {}
    for word in settings:
        key, _, text = word.partition("=")
        if key not in KEYS:
            raise ValueError(f"{word!r:.200} is none of rank=, alpha=, lr=")
        if key in values:
            raise ValueError(f"{key} is set twice")
        values[key] = _number(key, text)
    rank = values.get("rank")
    return LayerRule(pattern, None if rank is None else int(rank), values.get("alpha"), values.get("lr", 1.0))


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if key == "rank" and not (value.is_integer() and value >= 0):
        raise ValueError(f"rank is {text!r:.200}; it must be a whole number from 0 (no adapter) on")
    if not math.isfinite(value) or (key != "rank" and value <= 0):
        raise ValueError(f"{key} is {text!r:.200}; it must be a number above 0")
    return value
