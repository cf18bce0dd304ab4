"""The header of a file: its size, hashes and the graph in it."""

import hashlib
import json
import math
import struct
from pathlib import Path

import pytest
import torch
from lora_kiln.training.lora.export import in_precision
from lora_kiln.training.lora.files import read_lora_file
from lora_kiln.training.lora.header import file_hashes, header_size, workflow_metadata
from lora_kiln.training.lora.save import save_lora
from safetensors.torch import save

from loras import random_lora
from models import sd15


def raw(path: Path) -> tuple[bytes, bytes]:
    """A file's header and what follows it."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return content[8 : 8 + length], content[8 + length :]


def test_the_hash_is_of_all_that_follows_the_header(tmp_path: Path) -> None:
    lora = random_lora(sd15())
    path = save_lora(tmp_path / "a.safetensors", lora, {"modelspec.sai_model_spec": "1.0.1", "ss_seed": "7"})
    digest = hashlib.sha256(raw(path)[1]).hexdigest()
    values = read_lora_file(path).metadata
    assert values["sshs_model_hash"] == digest
    assert values["modelspec.hash_sha256"] == f"0x{digest}"


def test_the_legacy_hash_is_of_the_file_with_training_metadata_alone() -> None:
    tensors = {"a.lora_up.weight": torch.randn(700, 700)}
    content = save(tensors, {"ss_seed": "7"})
    expected = hashlib.sha256(content[1024 * 1024 : 1024 * 1024 + 64 * 1024]).hexdigest()[:8]
    with_more = {"ss_seed": "7", "workflow": "{}", "modelspec.title": "a"}
    assert file_hashes(tensors, with_more)["sshs_legacy_hash"] == expected


def test_a_file_saved_again_has_its_own_hash(tmp_path: Path) -> None:
    first = read_lora_file(save_lora(tmp_path / "a.safetensors", random_lora(sd15()), {"ss_seed": "7"}))
    second = save_lora(tmp_path / "b.safetensors", in_precision(first, "fp16"), first.metadata)
    values = read_lora_file(second).metadata
    assert values["sshs_model_hash"] == hashlib.sha256(raw(second)[1]).hexdigest() != first.metadata["sshs_model_hash"]


def test_the_header_is_hardly_smaller_than_was_said(tmp_path: Path) -> None:
    lora, values = random_lora(sd15()), {"workflow": '{"é": "\\"x\\""}' * 1000}
    header = raw(save_lora(tmp_path / "a.safetensors", lora, values))[0]
    hashes = sum(len(key) + len(value) + 8 for key, value in file_hashes(lora, values).items())
    assert len(header) <= header_size(lora, values) + hashes < 1.4 * len(header)


@pytest.mark.parametrize(
    ("prompt", "extra", "keys"),
    [
        ({"1": {"is_changed": math.nan}}, {"workflow": {"nodes": []}, "other": 1}, {"workflow", "prompt"}),
        ({"1": {}}, None, {"prompt"}),
        (None, {"workflow": {"nodes": []}}, {"workflow"}),
        (None, None, set()),
    ],
)
def test_the_workflow_is_text_that_the_page_can_read(prompt, extra, keys: set[str]) -> None:
    values = workflow_metadata(prompt, extra)
    assert values.keys() == keys
    assert "NaN" not in str(values)
    if "workflow" in values:
        assert json.loads(values["workflow"]) == {"nodes": []}
