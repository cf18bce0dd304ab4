"""OFT: rotations stay rotations, whatever is learned."""

import comfy.lora
import pytest
import torch
from lora_kiln.training.adapters import OFT, adapter_from_tensors, new_adapter
from torch import nn


def learned(layer: nn.Module, rank: int = 4) -> OFT:
    adapter = new_adapter("oft", layer, rank, 1.0, torch.Generator().manual_seed(0))
    assert isinstance(adapter, OFT)
    adapter.blocks.data = torch.randn(adapter.blocks.shape, generator=torch.Generator().manual_seed(1))
    return adapter


@pytest.mark.parametrize(
    ("out", "rank", "blocks"),
    [(320, 16, (20, 16, 16)), (320, 100, (20, 16, 16)), (320, 6, (64, 5, 5)), (7, 4, (7, 1, 1))],
)
def test_blocks_divide_the_rows(out: int, rank: int, blocks: tuple[int, ...]) -> None:
    assert learned(nn.Linear(8, out), rank).blocks.shape == blocks


def test_rotations_are_orthogonal_also_after_training() -> None:
    layer, x = nn.Linear(8, 12).requires_grad_(False), torch.randn(16, 8)
    adapter = learned(layer)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.05)
    before = adapter.blocks.detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        (adapter(layer, layer, x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    assert not torch.allclose(adapter.blocks, before, atol=1e-2)
    rotations = adapter.rotations()
    torch.testing.assert_close(rotations @ rotations.transpose(1, 2), torch.eye(3).repeat(4, 1, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(4))
    torch.testing.assert_close(adapter.merged(layer.weight).norm(), layer.weight.norm())


def test_rotations_are_cayleys() -> None:
    adapter = learned(nn.Linear(8, 12))
    skew = adapter.blocks - adapter.blocks.transpose(1, 2)
    expected = (torch.eye(3) + skew) @ torch.linalg.inv(torch.eye(3) - skew)
    torch.testing.assert_close(adapter.rotations(), expected)


@pytest.mark.parametrize("layer", [nn.Linear(5, 6), nn.Conv2d(2, 6, 3, stride=2)])
def test_gradients_agree_with_finite_differences(layer: nn.Module) -> None:
    layer = layer.double().requires_grad_(False)
    adapter = learned(layer).double()
    x = torch.randn((3, 5) if isinstance(layer, nn.Linear) else (2, 2, 5, 5), dtype=torch.float64)

    def output(blocks: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(adapter, {"blocks": blocks}, (layer, layer, x))

    assert torch.autograd.gradcheck(output, adapter.blocks)


def test_the_bias_is_left_alone() -> None:
    layer = nn.Linear(5, 6)
    assert torch.equal(learned(layer)(layer, layer, torch.zeros(1, 5))[0], layer.bias)


@pytest.mark.parametrize("constraint", [0.5, 1e3])
def test_a_files_constraint_is_kept_as_the_host_takes_it(constraint: float) -> None:
    layer = nn.Linear(5, 12).requires_grad_(False)
    tensors = {**learned(layer).tensors(), "alpha": torch.tensor(constraint)}
    adapter = adapter_from_tensors(tensors)
    assert isinstance(adapter, OFT) and adapter.tensors()["alpha"] == constraint
    patch = comfy.lora.load_lora({f"l.{name}": t for name, t in tensors.items()}, {"l": "l.weight"})["l.weight"]
    merged = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], layer.weight.clone(), "l.weight")
    torch.testing.assert_close(adapter.merged(layer.weight), merged)


def test_alpha_is_not_saved() -> None:
    """The host would take it for a constraint."""
    assert learned(nn.Linear(5, 6)).tensors().keys() == {"oft_blocks"}
