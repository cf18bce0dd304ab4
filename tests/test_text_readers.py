"""Every reader of text takes 100 kB of anything in little time, so that no text freezes the server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lora_kiln.nodes.apply_lora_preview import parse_strengths
from lora_kiln.nodes.lora_config import LoRAConfigNode
from lora_kiln.training import recipes
from lora_kiln.training.adapters.layer_rules import check_layer_rules, parse_layer_rules, rule_for
from lora_kiln.training.basics.errors import InputError, Refusal
from lora_kiln.training.basics.paths import PathRefused, check_parts, resolve
from lora_kiln.training.config import OptimizationConfig
from lora_kiln.training.data import captions
from lora_kiln.training.data.dataset_page import save_captions
from lora_kiln.training.data.dataset_settings import DatasetSettings
from lora_kiln.training.data.folder_settings import read_folder_settings
from lora_kiln.training.data.uploads import safe_path
from lora_kiln.training.learning.optimizers import check_optimizer
from lora_kiln.training.lora.comparison_cache import last_shown
from lora_kiln.training.lora.save import check_name
from lora_kiln.training.run.controls import Controls

SIZE = 100_000
"""characters"""
SECONDS = 2.0
"""of the processor's time for one text; a reader whose time grows with the square takes far more"""
UNITS = (
    *(
        "\n",
        "\r\n",
        " ",
        "\t",
        "\u3000",
        ",",
        ";",
        ".",
        ":",
        "=",
        "-",
        "_",
        "*",
        "#",
        "/",
        "\\",
        "../",
        '"',
        "'",
        "(",
        "[",
        "{",
    ),
    *(
        "a",
        "9",
        "a ",
        "a,",
        "a=1 ",
        "a = 1\n",
        "a: 1\n",
        "- a\n",
        "\na",
        '{"a":',
        "[[a]]\n",
        "b rank=1\n",
        "1,",
        " --l 7",
    ),
)
"""what the texts are made of"""
ENDS = (("", "!"), ("a=1", "b"))
"""(before, after) the many of one unit"""


def texts() -> list[str]:
    """Many of each unit, and a file of many data sets."""
    many = "[[datasets]]\nresolution = 9\n" * 3000
    return [many, *(f"{before}{unit * (SIZE // len(unit))}{after}" for unit in UNITS for before, after in ENDS)]


def readers(folder: Path) -> dict[str, Callable[[str], object]]:
    """Every reader of text that a person, a page or a file gives, by what is read.

    Args:
        folder: for the files that some of them read.
    """

    def of_file(name: str, read: Callable[[Path], object]) -> Callable[[str], object]:
        def run(text: str) -> None:
            path = folder / name
            path.write_text(text, "utf-8", errors="surrogatepass", newline="")
            read(path)

        return run

    def layer_rules(text: str) -> None:
        rules = parse_layer_rules(text)
        names = [f"diffusion_model.blocks.{number}.attn.to_q" for number in range(500)]
        check_layer_rules(rules, names)
        for name in names:
            rule_for(rules, name)

    def metadata(text: str) -> None:
        keys = (
            "ss_network_args",
            "ss_datasets",
            "ss_text_encoder_lr",
            "ss_sample_prompts",
            "kiln_layer_rules",
            "other",
        )
        more = {"modelspec.timestep_range": text, "ss_optimizer": f"AdamW({text})", "ss_network_dim": "8"}
        _ = recipes.read_metadata({**dict.fromkeys(keys, text), **more}, [text]).report()

    def control(text: str) -> None:
        Controls().ask("sample_prompts", [text[:4000]] * 16)
        Controls().ask(text, text)

    return {
        "recipe": lambda text: recipes.read(text, "x.toml").report(),
        "recipe's value": lambda text: recipes.read(
            json.dumps({"LoRA_type": "Standard", "additional_parameters": text, "optimizer_args": text, "x": text})
        ).report(),
        "recipe's prompts": lambda text: recipes.read(json.dumps({"LoRA_type": "Standard", "sample_prompts": text})),
        "OneTrainer's values": lambda text: recipes.read(
            json.dumps({"training_method": text, "resolution": text, "samples": [{"prompt": text}]})
        ),
        "SimpleTuner's values": lambda text: recipes.read(json.dumps({"model_family": text, "optimizer_config": text})),
        "job's prompts": lambda text: recipes.read(
            json.dumps({"config": {"process": [{"train": {}, "sample": {"prompts": [text]}, "trigger_word": text}]}})
        ),
        "LoRA's metadata": metadata,
        "changes": recipes.parse_changes,
        "layer_rules": layer_rules,
        "optimizer_args": lambda text: check_optimizer(OptimizationConfig(optimizer_args=text), [1e-4]),
        "extra_resolutions": lambda text: DatasetSettings(extra_resolutions=text).resolutions(),
        "strengths": parse_strengths,
        "sample_prompts": lambda text: LoRAConfigNode.execute("custom", sample_prompts=text),
        "caption": of_file("a.txt", captions.read_text),
        "caption's tags": lambda text: (
            captions.shuffle_tags(text, 1, 7), captions.drop_tags(text, 1, 0.5, 7), captions.one_line(text)
        ),
        "trigger word": lambda text: (captions.with_trigger(text, text[: SIZE // 2]), captions.with_trigger(text, "a")),
        "metadata.jsonl": of_file("metadata.jsonl", lambda path: captions.read_metadata(path.parent)),
        "dataset.toml": of_file("dataset.toml", lambda path: read_folder_settings(path.parent, path.name)),
        "file's name": safe_path,
        "folder's name": lambda text: resolve("/".join(check_parts(text)), [folder]),
        "LoRA's name": lambda text: check_name(text, "filename", "Save LoRA"),
        "run request": control,
        "captions to save": lambda text: save_captions({"folder": text, "captions": [{"name": text, "caption": text}]}),
        "comparison's query": lambda text: last_shown({"workflow_id": text, "node_ids": text}),
    }  # fmt: skip


EXPECTED = (InputError, Refusal, PathRefused, captions.CaptionFileError)
"""what a reader may say of such a text"""


@pytest.mark.parametrize("what", readers(Path()))
def test_a_text_of_100_kb_is_read_or_refused_at_once(what: str, tmp_path: Path) -> None:
    read = readers(tmp_path)[what]
    for text in texts():
        start = time.process_time()
        try:
            read(text)
        except EXPECTED as error:
            assert len(str(error)) < SIZE
        spent = time.process_time() - start
        assert spent < SECONDS, f"{spent:.1f} s for {text[:20]!r} ..."
