"""What a captioner's files ask the transformers library to fetch, import or open beside the model itself.

`trust_remote_code=False` and safetensors weights do not cover it: entries of config.json and the like name kernels,
adapters, backbones and tokenizers of the Hugging Face hub, options of a compiler, or files of this computer.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LARGEST = 16 * 2**20
"""bytes of a JSON file"""
NOT_LOOKED_AT = ("tokenizer.json", "vocab.json")
"""lists of tokens, megabytes each: they are read as such, and ask for nothing"""
MOST_NAMED = 5
"""problems that are named"""
INDEX = ".safetensors.index.json"
PROGRAM = "custom_generate/generate.py"
"""a program that some versions of transformers run in place of their own generation, whatever trust_remote_code is"""
SHOWN_NAMES = ("_name_or_path", "name_or_path", "special_tokens_map_file", "chat_template")
"""entries that are shown or compared, never opened"""

PLAIN = ("eager", "sdpa", "flex_attention", "batched_mm", "grouped_mm")
"""implementations of attention and experts that are part of PyTorch and transformers"""
FLASH = re.compile(r"(paged\|)?flash_attention_\d")
"""they come from an installed package, and without it from the hub if `kernels` is installed"""
QUANTISED = ("awq", "gptq", "bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "hqq", "quanto", "torchao",
             "compressed-tensors", "aqlm", "auto-round", "bitnet")  # fmt: skip
"""formats of weights that are read by an installed package; others are read by kernels of the hub if `kernels` is
installed"""


@dataclass(frozen=True)
class _Rule:
    """What one kind of entry may hold."""

    name: str
    """pattern of the entry's whole name"""
    is_allowed: Callable[[Any], bool]
    """takes the value; null is always allowed"""
    meaning: str
    """continues `<entry> is <value>, `"""


def problems_of_files(folder: Path) -> list[str]:
    """A sentence for each entry of a model's JSON files that names code, a model or a file outside its folder."""
    problems = []
    if (folder / PROGRAM).exists():
        problems.append(f"{PROGRAM} is a program that may be run: delete it, or choose another captioner.")
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).as_posix()
        is_hidden = any(part.startswith(".") for part in name.split("/"))  # no loader opens those
        if path.name not in NOT_LOOKED_AT and not is_hidden:
            problems += [f"{name}: {each}" for each in _problems_of_file(path, folder)]
    more = len(problems) - MOST_NAMED
    return problems if more <= 0 else [*problems[:MOST_NAMED], f"{more} more of the kind."]


def _problems_of_file(path: Path, folder: Path) -> Iterator[str]:
    try:
        if path.stat().st_size > LARGEST:
            yield f"it is larger than {LARGEST // 2**20} MiB: choose another captioner."
            return
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        yield f"it cannot be read as JSON ({str(error).splitlines()[0]:.100}): get the model's files anew."
        return
    for parts, value in _entries(content):
        name, last = ".".join(parts), parts[-1]
        rule = next((each for each in RULES if re.fullmatch(each.name, last)), None)
        if rule is not None and not (value is None or rule.is_allowed(value)):
            yield f"{name:.200} is {_short(value)}, {rule.meaning}. Delete the entry, or choose another captioner."
        if last == "auto_map" and name != last and path.name == "config.json":
            yield f"{name:.200} names code of the model's own, which is not run. Choose another captioner."
        if isinstance(value, str) and last not in SHOWN_NAMES and _is_outside(value, folder):
            yield f"{name:.200} is {_short(value)}, a file outside the model's folder. Choose another captioner."
    weights = content.get("weight_map") if path.name.endswith(INDEX) and isinstance(content, dict) else {}
    if not isinstance(weights, dict) or not all(map(_is_weights_file, weights.values())):
        yield "weight_map must name safetensors files beside it: get the model's files anew."


def _entries(content: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names from the outermost on, value) of each entry, at all levels; items of a list have its name."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield (*above, name), value
            yield from _entries(value, (*above, name))
    elif isinstance(content, list):
        for value in content:
            if isinstance(value, str):
                yield above or ("",), value
            else:
                yield from _entries(value, above)


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _is_installed(text: str) -> bool:
    """Whether an implementation is part of PyTorch, transformers or an installed package, never fetched."""
    return text in PLAIN or (FLASH.fullmatch(text) is not None and find_spec("kernels") is None)


def _is_installed_quantisation(value: Any) -> bool:
    method = value.get("quant_method", "bitsandbytes") if isinstance(value, dict) else value
    return method in QUANTISED or (isinstance(method, str) and find_spec("kernels") is None)


def _is_weights_file(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"[\w.-]+(\.safetensors|{re.escape(INDEX)})", value) is not None


def _is_file_here(value: Any) -> bool:
    return all(re.fullmatch(r"[\w.-]+\.json", text) for text in _texts(value))


def _is_outside(text: str, folder: Path) -> bool:
    """Whether a text is the path of a file outside a folder. Servers of other computers are not asked."""
    if len(text) > 1000 or not ("/" in text or "\\" in text):
        return False
    if text.startswith(("//", "\\\\")):
        return os.name == "nt"
    path = os.path.abspath(os.path.expanduser(text))
    return os.path.isfile(path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _is_off(value: Any) -> bool:
    return not value


def _short(value: Any) -> str:
    return f"{value!r:.100}"


RULES = (
    _Rule(
        r".*(attn|experts)_implementation.*",
        lambda value: all(map(_is_installed, _texts(value))),
        f"which may be code that is fetched from the hub; it may be {', '.join(PLAIN)}",
    ),
    _Rule(r"quantization_config|compression_config", _is_installed_quantisation, "which is read by code of the hub"),
    _Rule(r"compile_config", _is_off, "options of a compiler, which name programs"),
    _Rule(r"base_model_name_or_path", _is_off, "another model: an adapter is no captioner by itself"),
    _Rule(r"audio_tokenizer_name_or_path", _is_off, "another model, which would be fetched"),
    _Rule(r"use_pretrained_backbone", _is_off, "which fetches another model"),
    _Rule(r"backbone(_checkpoint)?", lambda value: not isinstance(value, str), "another model, which would be fetched"),
    _Rule(r"architecture", lambda value: isinstance(value, str) and not set(value) & set(":/\\"), "another model"),
    _Rule(r"checkpoint_path|gguf_file|repo_path", _is_off, "a file or another model"),
    _Rule(r"transformers_weights", _is_weights_file, "which must be a safetensors file in the model's folder"),
    _Rule(r"configuration_files|fast_tokenizer_files", _is_file_here, "which must be JSON files in its folder"),
)
