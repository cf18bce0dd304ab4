"""Merge and Resize LoRAs: what the node makes of its inputs."""

from __future__ import annotations

import pytest
import torch
from lora_kiln.nodes.merge_loras import MergeLoRAs
from lora_kiln.training import host
from lora_kiln.training.basics.errors import InputError
from lora_kiln.training.lora.lora import LoRAModel

import models


def lora(name: str, value: float, rank: int = 2) -> LoRAModel:
    tensors = {
        "lora_unet_a.lora_down.weight": torch.eye(rank, 6) * value,
        "lora_unet_a.lora_up.weight": torch.eye(8, rank),
        "lora_unet_a.alpha": torch.tensor(float(rank)),
    }
    return LoRAModel(tensors, {"ss_seed": "3"}, name)


def difference(lora: LoRAModel) -> torch.Tensor:
    return lora["lora_unet_a.lora_up.weight"] @ lora["lora_unet_a.lora_down.weight"]


def test_each_lora_counts_with_its_own_weight():
    with torch.inference_mode():
        merged, report = MergeLoRAs.execute(
            lora("a", 1.0), rank=0, weight_1=0.5, lora_2=lora("b", 1.0), weight_2=1.0, lora_3=None, weight_3=1.0,
            lora_4=lora("d", 1.0), weight_4=-2.0,
        ).args  # fmt: skip
    assert torch.allclose(difference(merged), -0.5 * torch.eye(8, 6) * (torch.arange(6) < 2))
    assert "0.5 x a, 1 x b, -2 x d" in report
    assert merged.metadata["modelspec.merged_from"] == "a, b, d"
    assert merged.metadata["ss_seed"] == "3"


def test_one_lora_is_resized():
    merged, report = MergeLoRAs.execute(lora("a", 1.0, rank=4), rank=1, weight_1=1.0).args
    assert merged["lora_unet_a.lora_down.weight"].shape == (1, 6)
    assert "86.60%" in report  # three of four equal singular values are left out
    assert merged.metadata["ss_network_dim"] == "1"


def test_the_core_trainers_names_are_known_when_the_model_is_connected():
    small = models.sd15()
    layer = next(layer for key, layer in host.layer_names(small.model).items() if key.endswith("attn1.to_q.weight"))
    out, width = layer.shape
    core = {
        f"{layer.comfy}.lora_up.weight": torch.ones(out, 1),
        f"{layer.comfy}.lora_down.weight": torch.ones(1, width),
    }
    merged, _ = MergeLoRAs.execute(core, rank=0, weight_1=0.5, model=small.model).args
    assert merged.keys() == {f"{layer.kohya}.{entry}" for entry in ("lora_up.weight", "lora_down.weight", "alpha")}
    with pytest.raises(InputError, match="connect the model"):
        MergeLoRAs.execute(core, rank=0, weight_1=0.5)


def test_every_input_has_a_tooltip_and_four_loras_have_their_weights():
    schema = MergeLoRAs.define_schema()
    ids = [item.id for item in schema.inputs]
    assert all(item.tooltip for item in schema.inputs)
    assert [name for name in ids if name.startswith("weight")] == [f"weight_{n}" for n in (1, 2, 3, 4)]
    assert [item.id for item in schema.inputs if item.id.startswith("lora") and not item.optional] == ["lora_1"]
