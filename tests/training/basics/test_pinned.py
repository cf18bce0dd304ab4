"""Without pinned memory data goes from ordinary memory, and that is said."""

from __future__ import annotations

import pytest
import torch
from lora_kiln.training.basics.pinned import NOT_PINNED, pinned


def test_where_pinning_fails_the_tensor_stays_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    said: list[str] = []
    tensor = torch.arange(3.0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    assert pinned(tensor, said.append) is not tensor and not said
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuses)
    assert pinned(tensor, said.append) is tensor and said == [NOT_PINNED]
