"""LoHa: FedPara's product against its definition."""

import pytest
import torch
from lora_kiln.training.adapters import new_adapter
from torch import nn

RANK, ALPHA = 2, 3.0


@pytest.mark.parametrize("layer", [nn.Linear(10, 8), nn.Conv2d(4, 8, 3, padding=1)])
def test_the_difference_is_the_hadamard_product_of_two_low_rank_products(layer: nn.Module) -> None:
    adapter = new_adapter("loha", layer, RANK, ALPHA, torch.Generator().manual_seed(0))
    adapter.w2_a.data = torch.randn(8, RANK, generator=torch.Generator().manual_seed(1))
    tensors = adapter.tensors()
    expected = torch.zeros(8, layer.weight[0].numel())
    for r in range(RANK):
        for s in range(RANK):
            one = torch.outer(tensors["hada_w1_a"][:, r], tensors["hada_w1_b"][r])
            expected += one * torch.outer(tensors["hada_w2_a"][:, s], tensors["hada_w2_b"][s])
    expected = (ALPHA / RANK * expected).reshape(layer.weight.shape)
    torch.testing.assert_close(adapter.difference(layer.weight), expected)
    assert torch.linalg.matrix_rank(adapter.difference(layer.weight).flatten(1)) == RANK**2


def test_the_start_is_spread_as_lycoris_spreads_it() -> None:
    tensors = new_adapter("loha", nn.Linear(300, 200), 40, ALPHA, torch.Generator().manual_seed(0)).tensors()
    deviations = {name: round(tensors[f"hada_{name}"].std().item(), 1) for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    assert deviations == {"w1_a": 0.1, "w1_b": 1.0, "w2_a": 0.0, "w2_b": 1.0}
