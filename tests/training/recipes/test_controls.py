"""Where a report sends a person: every control that it names is one of the node that it names."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
from lora_kiln.nodes.adapter_options import AdapterOptions
from lora_kiln.nodes.import_recipe import ImportRecipe
from lora_kiln.nodes.load_dataset import LoadDataset
from lora_kiln.nodes.lora_config import LoRAConfigNode
from lora_kiln.nodes.loss_options import LossOptions
from lora_kiln.nodes.merge_loras import MergeLoRAs
from lora_kiln.nodes.optimizer_options import OptimizerOptions
from lora_kiln.nodes.save_lora import SaveLoRA
from lora_kiln.nodes.train_lora import TrainLoRA
from lora_kiln.training.config import FIELDS
from lora_kiln.training.data.dataset import DatasetSettings
from lora_kiln.training.data.folder_settings import SETTINGS_FILE, FolderSettings
from lora_kiln.training.recipes import ai_toolkit_keys, kohya_gui
from lora_kiln.training.recipes.recipe import SETTINGS_ALONE
from lora_kiln.training.recipes.sd_scripts import keys

from host import PACK


def names(settings: type) -> set[str]:
    return {each.name for each in fields(settings)}


SCHEMAS = [
    node.define_schema()
    for node in (
        *(LoadDataset, LoRAConfigNode, AdapterOptions, LossOptions, OptimizerOptions, ImportRecipe, TrainLoRA),
        *(SaveLoRA, MergeLoRAs),
    )
]
CONTROLS = {schema.display_name: {each.id for each in schema.inputs} for schema in SCHEMAS}
CONTROLS[SETTINGS_FILE] = names(FolderSettings)
CONTROLS["Import Recipe"] |= set(FIELDS)  # its changes take them all
SETTINGS = {name for name in set(FIELDS) | names(DatasetSettings) if "_" in name}
"""Those that can be told from plain words."""
PLAIN = {"set", "settings", "those"}
"""Words before "in <place>" that name no control."""
SOURCES = [*sorted((PACK / "training" / "recipes").rglob("*.py")), PACK / "nodes" / "import_recipe.py"]


def literals(path: Path) -> list[str]:
    """Every text of a module but its docstrings; of an f-string the parts between the values."""
    tree = ast.parse(path.read_text("utf-8"))
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documents]
    return [node.value for node in texts if isinstance(node.value, str)]


def table_texts() -> list[str]:
    tables = [keys.IGNORED, keys.MISSING, kohya_gui.IGNORED, kohya_gui.MISSING]
    tables += [ai_toolkit_keys.IGNORED, ai_toolkit_keys.MISSING, ai_toolkit_keys.TABLES]
    values = [value for table in tables for value in table.values()]
    return [text for value in values for text in (value if isinstance(value, tuple) else (value,)) if str(text) == text]


TEXTS = sorted({*table_texts(), *(text for path in SOURCES for text in literals(path))})


def places(text: str) -> list[str]:
    return [place for place in CONTROLS if place in text]


def misplaced(text: str) -> list[str]:
    """What a text names in a place that does not have it."""
    found = []
    for place in places(text):
        before = re.findall(rf"(\w+) in (?:a |the )?{re.escape(place)}", text)
        behind = re.findall(rf"{re.escape(place)}'s (\w+)", text)
        found += [f"{name} in {place}" for name in (*before, *behind) if name not in CONTROLS[place] | PLAIN]
    offered = set().union(*(CONTROLS[place] for place in places(text)))
    found += [name for name in SETTINGS if places(text) and re.search(rf"\b{name}\b", text) and name not in offered]
    return found


@pytest.mark.parametrize("text", [text for text in TEXTS if places(text)])
def test_every_named_control_is_where_the_text_says(text: str) -> None:
    assert misplaced(text) == []


def test_the_texts_are_found() -> None:
    named = {place for text in TEXTS for place in places(text)}
    assert {"Adapter Options", "Load Dataset", "Import Recipe", SETTINGS_FILE} <= named


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("layer_rules in LoRA Config can say the same", True),
        ("layer_rules in Adapter Options can say the same", False),
        ("as caption_prefix in Load Dataset", True),
        ("as caption_prefix in a dataset.toml does", False),
        ("Loss Options' ema_decay", True),
        ("write conv_rank: LoRA Config has it", True),
        ("LoRA Config's preset custom", False),
    ],
)
def test_a_control_in_the_wrong_place_is_seen(text: str, wrong: bool) -> None:
    assert bool(misplaced(text)) is wrong


def test_what_load_dataset_lacks_a_settings_file_has() -> None:
    assert names(DatasetSettings) - CONTROLS["Load Dataset"] == SETTINGS_ALONE
    assert SETTINGS_ALONE <= CONTROLS[SETTINGS_FILE]
