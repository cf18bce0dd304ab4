"""Import Recipe: another trainer's settings, or a LoRA's, as a recipe."""

from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ..training import host, recipes
from ..training.basics.errors import InputError
from ..training.basics.folders import fingerprint
from ..training.lora.header import read_header
from ..training.recipes.files import read_recipe, recipe_files, recipe_path
from .types import CATEGORY, NONE, KilnConfig

SUBJECT = "Import Recipe"
RECIPE, LORA = "input/", "loras/"
"""What the names in the list begin with."""


class ImportRecipe(io.ComfyNode):
    """A recipe out of another trainer's file, or out of a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KilnImportRecipe",
            display_name="Import Recipe",
            category=CATEGORY,
            description="Reads the settings of another trainer (sd-scripts, kohya_ss, OneTrainer, SimpleTuner, "
            "ai-toolkit, musubi-tuner, diffusion-pipe) or of a LoRA file, and says what became of each of them.",
            search_aliases=[
                *("kohya", "sd-scripts", "ai-toolkit", "onetrainer", "simpletuner", "musubi", "diffusion-pipe"),
                *("toml", "yaml", "json", "lora metadata", "settings"),
            ],
            inputs=[
                io.Combo.Input(
                    "file", options=_files(), default=NONE,
                    tooltip="input/...: a .toml, .json or .yaml file in ComfyUI's input folder. loras/...: a LoRA, "
                    "for the settings in its metadata. none: the text below.",
                ),
                io.String.Input(
                    "text", default="", multiline=True, optional=True,
                    tooltip="A recipe pasted in, instead of a file: TOML, JSON or YAML.",
                ),
                io.String.Input(
                    "changes", default="", multiline=True, optional=True,
                    placeholder="changes, for example:\nsteps=2000 seed=7 learning_rate=1e-4",
                    tooltip="Fields of the config set by hand, over the recipe: steps=2000 seed=7 learning_rate=1e-4. "
                    "The names are those in LoRA Config and the Options nodes. Words with spaces stand in quotes.",
                ),
            ],
            outputs=[
                KilnConfig.Output(
                    display_name="config",
                    tooltip="For Train LoRA. changes sets any field of it; Adapter Options, Loss Options and Optimizer "
                    "Options behind it set theirs.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="What became of each setting, the lost ones first, and what to set in Load Dataset.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file: Any = None, changes: Any = None) -> bool | str:
        try:
            if file not in (None, "", NONE):
                _path(file)
            if isinstance(changes, str):
                recipes.parse_changes(changes)
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str = NONE, text: str | None = None, changes: str | None = None) -> Any:
        if file in ("", NONE):
            return text
        return fingerprint(_path(file))

    @classmethod
    def execute(cls, file: str, text: str | None = None, changes: str | None = None) -> io.NodeOutput:
        by_hand = recipes.parse_changes(changes or "")
        recipe = _read("" if file == NONE else file, (text or "").strip()).with_changes(by_hand)
        config, report = recipe.config, recipe.report()
        return io.NodeOutput(config, report, ui=ui.PreviewText(report))


def _read(file: str, text: str) -> recipes.Recipe:
    if file and text:
        raise InputError(SUBJECT, ["file and text are both given: choose none as the file, or empty the text."])
    if text:
        return recipes.read(text, "in the text")
    if not file:
        raise InputError(SUBJECT, ["file is 'none' and text is empty: choose a file, or paste a recipe."])
    if file.startswith(LORA):
        header = read_header(_path(file))
        return recipes.read_metadata(header.metadata, header.tensors, file)
    return recipes.read(read_recipe(file.removeprefix(RECIPE), recipes.LARGEST), file)


def _files() -> list[str]:
    found = [f"{RECIPE}{name}" if not Path(name).is_absolute() else name for name in recipe_files()]
    return [NONE, *found, *(f"{LORA}{name}" for name in host.lora_files())]


def _path(file: Any) -> Path:
    if isinstance(file, str) and file.startswith(LORA):
        return host.lora_path(file.removeprefix(LORA), "file", SUBJECT)
    return recipe_path(file.removeprefix(RECIPE) if isinstance(file, str) else file)
