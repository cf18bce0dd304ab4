"""Whose file it is: one row for each kind of file, recognised by what only that kind has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..basics.errors import InputError
from . import (
    ai_toolkit,
    diffusion_pipe,
    easy_scripts,
    kohya_gui,
    lora_metadata,
    musubi,
    one_trainer,
    sd_scripts,
    simple_tuner,
)
from .ledger import shown_key
from .recipe import Recipe

SHOWN = 5
"""keys of an unknown file that its refusal names"""


@dataclass(frozen=True)
class Dialect:
    """A kind of file."""

    name: str
    """as messages call it"""
    recognises: Callable[[Mapping[str, Any]], bool]
    """by the keys of the top-level table"""
    read: Callable[[Mapping[str, Any]], Recipe]


def _with_keys(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    """Recognises a table that has all of the keys."""
    return lambda content: all(key in content for key in keys)


def _refusal(what: str) -> Callable[[Mapping[str, Any]], Recipe]:
    """A reader that refuses the file as what it is."""

    def read(content: Mapping[str, Any]) -> Recipe:
        raise InputError("The recipe", [f"it is {what}, which holds no key of a recipe; choose a trainer's own file."])

    return read


SD_SCRIPTS = Dialect("an sd-scripts TOML", sd_scripts.recognises, sd_scripts.read)
DIALECTS: tuple[Dialect, ...] = (
    Dialect("the header of a LoRA", lora_metadata.is_header, lora_metadata.read_header),
    Dialect("the metadata of a LoRA (ss_...)", lora_metadata.recognises, lora_metadata.read),
    Dialect("an ai-toolkit job (YAML)", ai_toolkit.recognises, ai_toolkit.read),
    Dialect("a OneTrainer config (JSON)", one_trainer.recognises, one_trainer.read),
    Dialect("a SimpleTuner config (JSON)", simple_tuner.recognises, simple_tuner.read),
    Dialect("SimpleTuner's lycoris_config", simple_tuner.recognises_lycoris, simple_tuner.read_lycoris),
    Dialect("a TOML of LoRA_Easy_Training_Scripts", easy_scripts.recognises, easy_scripts.read),
    Dialect("a diffusion-pipe TOML", diffusion_pipe.recognises, diffusion_pipe.read),
    Dialect("a musubi-tuner TOML", musubi.recognises, musubi.read),
    Dialect("a kohya_ss JSON of its LoRA tab", kohya_gui.recognises, kohya_gui.read),
    SD_SCRIPTS,
)
"""In the order in which they are asked: a relative of sd-scripts has keys of it too."""

OTHERS: tuple[Dialect, ...] = tuple(
    Dialect(what, recognises, _refusal(what))
    for what, recognises in (
        ("a ComfyUI workflow", _with_keys("nodes", "links")),
        ("a LoRA's adapter_config.json", _with_keys("peft_type", "target_modules")),
        ("a model's config.json", _with_keys("_class_name")),
        ("a language model's config.json", _with_keys("architectures", "model_type")),
        ("an EveryDream2 configuration", _with_keys("data_root", "cond_dropout")),
        ("an invoke-training configuration", _with_keys("type", "data_loader")),
        ("accelerate's configuration of the machine", _with_keys("compute_environment", "distributed_type")),
    )
)
"""files that are known, and are refused by name"""


def dialect_of(kind: str, content: Mapping[str, Any]) -> Dialect:
    """The row of a file.

    Args:
        kind: TOML, JSON or YAML; a TOML is sd-scripts' if most of its keys are, though other trainers have them too.

    Raises:
        InputError: no row recognises the file; says which keys it has.
    """
    for dialect in (*OTHERS, *DIALECTS):  # EveryDream2 and invoke-training have some keys of sd-scripts
        if dialect.recognises(content):
            return dialect
    if kind == "TOML" and sd_scripts.knows_most(content):
        return SD_SCRIPTS
    if not content:
        raise InputError("The recipe", ["it is empty; choose a file that holds settings."])
    some = ", ".join(shown_key(key) for key in list(content)[:SHOWN]) + (", ..." if len(content) > SHOWN else "")
    known = ", ".join(dialect.name for dialect in DIALECTS)
    raise InputError(
        "The recipe",
        [
            f"this {kind} holds no key of a recipe that is known: it has {some}. Files that are read: {known}. "
            "The settings of another trainer must be set by hand."
        ],
    )
