"""A LoRA as the graph passes it on."""

import pytest
import torch
from lora_kiln.training.lora.lora import LoRAModel, usual_dtype

TENSORS = {"a.lora_up.weight": torch.arange(6.0).reshape(2, 3)}


def test_a_lora_model_is_its_state_dict() -> None:
    lora = LoRAModel(TENSORS, {"a": "b"}, "anna")
    assert dict(lora) == TENSORS and lora.metadata == {"a": "b"} and lora.name == "anna" and lora.layers == {}
    assert lora.precision is None


@pytest.mark.parametrize(
    ("precision", "dtype"), [(None, torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_the_usual_number_format_is_that_of_its_file_or_of_most_values(precision, dtype):
    tensors = {"a": torch.zeros(9, dtype=torch.float16), "b": torch.zeros(4), "c": torch.zeros(99, dtype=torch.int64)}
    assert usual_dtype(LoRAModel(tensors, {}, "a", precision=precision)) == dtype
