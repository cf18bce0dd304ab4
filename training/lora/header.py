"""The header of a safetensors file: reading and sizing it, and the entries about the file itself (graph, hashes)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..basics.errors import InputError

SUBJECT = "LoRA file"
LARGEST_HEADER = 16 * 2**20
"""Bytes; larger headers are not read. Thousands of tensors and the longest metadata in use need a quarter of it."""
LARGEST_OPENED_HEADER = 4 * 2**20
"""Bytes; ComfyUI's page opens workflows only from files with a smaller header."""


@dataclass(frozen=True)
class Header:
    """Contents of a safetensors header."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, int]]
    """Key -> (safetensors' name of the number type, number of dimensions)."""


def read_header(path: Path) -> Header:
    """Reads the header of a safetensors file and checks it against the file's size; the tensors are not read.

    The format: the header's length as 8 bytes, little-endian; the header, JSON; the tensors.

    Raises:
        InputError: it is not a safetensors file, is cut short, or cannot be read.
    """
    again = "Choose another file, or copy or download it again."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length) if 2 <= length <= min(LARGEST_HEADER, size - 8) else b""
    except OSError as error:
        raise InputError(SUBJECT, [f"{path.name} cannot be read ({error}). {again}"]) from error
    if 8 <= size < 8 + length <= 8 + LARGEST_HEADER:
        raise InputError(SUBJECT, [f"{path.name} is cut short. {again}"])
    try:
        content = json.loads(text.decode())
        metadata = {str(key): str(value) for key, value in content.pop("__metadata__", {}).items()}
        tensors = {key: (str(entry["dtype"]), len(entry["shape"])) for key, entry in content.items()}
        end = max((int(entry["data_offsets"][1]) for entry in content.values()), default=0)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(SUBJECT, [f"{path.name} is no safetensors file. {again}"]) from error
    if size < 8 + length + end:
        raise InputError(SUBJECT, [f"{path.name} is cut short. {again}"])
    return Header(metadata, tensors)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object in a file's metadata; empty if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def header_size(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> int:
    """Upper estimate of a safetensors header's size in bytes."""
    entries = {
        key: {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [2**40] * 2} for key, t in tensors.items()
    }
    return 8 + len(json.dumps({"__metadata__": dict(metadata), **entries}, ensure_ascii=False).encode())


def workflow_metadata(prompt: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """Metadata entries from which the page can open the graph.

    Args:
        prompt: the graph in API form (a node's hidden input PROMPT), or None.
        extra: the node's hidden input EXTRA_PNGINFO, which holds the workflow.
    """
    cache_keys = {"is_changed"}  # of the host's cache; may be NaN, which is not JSON
    nodes = {id_: {key: node[key] for key in node.keys() - cache_keys} for id_, node in (prompt or {}).items()}
    values = {"workflow": (extra or {}).get("workflow"), "prompt": nodes}
    return {key: json.dumps(value) for key, value in values.items() if value}


def file_hashes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """Hashes by which UIs recognise a LoRA: sshs_* and modelspec.hash_sha256.

    sshs_model_hash is the SHA-256 of everything after the file's header. sshs_legacy_hash is that of 64 KiB from 1 MiB
    on, in the file with `ss_*` metadata only.
    """
    training = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = memoryview(save({key: tensor.contiguous() for key, tensor in tensors.items()}, training))
    header = 8 + int.from_bytes(content[:8], "little")
    data_hash = hashlib.sha256(content[header:]).hexdigest()
    legacy = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    hashes = {"sshs_model_hash": data_hash, "sshs_legacy_hash": legacy}
    if "modelspec.sai_model_spec" in metadata:
        hashes["modelspec.hash_sha256"] = f"0x{data_hash}"
    return hashes
